"""The network of a policy in batches of fixed sizes, as a device needs them.

On a card the rounding of a row depends on the size of its batch, not on the other rows, and a recording (a CUDA graph)
runs on inputs of one size at one place in memory. So the rows of a call are copied into inputs of a fixed size, and what
comes of the other rows is ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gpc.errors import RunError, one_line
from gpc.inert import notice
from gpc.score.denoiser import Network, NetworkDenoiser

CHECKED = 2  # observations for which each recording is compared with the network itself
MOST = 16  # recordings of a network, of all sizes and shapes


class Place(Protocol):
    """Where networks compute, see `gpc.inference.device`."""

    @property
    def device(self) -> torch.device:
        """The device."""

    def entered(self, policy: str) -> AbstractContextManager[None]:
        """Make the place current in this thread; an error of memory names the policy."""

    def record(self, function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
        """Return what repeats a function of inputs, which stay at their place in memory."""

    def fetch(self, out: Tensor) -> Callable[[], Tensor]:
        """Begin to copy an output to the host.

        Returns:
            A function that waits for it.
        """


@dataclass(eq=False)
class _Call:
    """The rows of one call.

    Attributes:
        network: The network.
        inputs: x, label, and the tensors of the condition.
        tree: Structure of the condition.
        observation: Number of its observation.
        checked: Whether its recording is compared with the network.
        out: The output.
        error: What was raised instead.
    """

    network: Network
    inputs: list[Tensor]
    tree: Any
    observation: int
    checked: bool = False
    out: Tensor | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.out is not None or self.error is not None

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    @property
    def condition(self) -> list[Tensor]:
        return self.inputs[2:]

    @property
    def kind(self) -> Hashable:
        """What the calls of one recording have in common."""
        return repr(self.tree), tuple((value.shape[1:], value.dtype) for value in self.inputs)

    def on(self, x: Tensor, label: Tensor, *tensors: Tensor) -> Tensor:
        """Return the output of the network for other inputs of this kind."""
        return self.network(x, label, *tree_unflatten(list(tensors), self.tree))


@dataclass
class _Recording:
    inputs: list[Tensor]
    run: Callable[[], Tensor]
    observations: set[int] = field(default_factory=set)

    def checks(self, observation: int) -> bool:
        """Return whether an observation is one of its first, which are compared."""
        if len(self.observations) < CHECKED:
            self.observations.add(observation)
        return observation in self.observations


class _Batch(NamedTuple):
    """Calls that are computed together, in batches of a size."""

    calls: Sequence[_Call]
    size: int
    parts: list[Callable[[], Tensor]]


@dataclass
class BatchedNetwork:
    """Runs the network of one policy at a place, for any number of rows and threads.

    If it is recorded, one batch is computed at a time, and calls that come meanwhile are the next one.

    Attributes:
        policy: Name of the policy, for notices and errors.
        place: Where it computes.
        sizes: Rows of a batch, ascending; empty: as many as the call has.
        recorded: Whether it is recorded.
    """

    policy: str
    place: Place
    sizes: tuple[int, ...]
    recorded: bool
    _recordings: dict[Hashable, _Recording] = field(default_factory=dict)
    _waiting: deque[_Call] = field(default_factory=deque)
    _computing: list[_Batch] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)
    _bound: int = 0

    def bind(self, denoiser: NetworkDenoiser) -> NetworkDenoiser:
        """Return a denoiser whose network computes at the place, in batches."""
        self._bound += 1
        return replace(denoiser, network=BoundNetwork(self, denoiser.network, self._bound))

    def size_of(self, rows: int) -> int:
        """Return the least size that holds a number of rows, or the largest."""
        return next((size for size in self.sizes if size >= rows), self.sizes[-1]) if self.sizes else rows

    def start(self, call: _Call) -> Callable[[], Tensor]:
        """Begin a call; the function that is returned waits for its result."""
        if not self.recorded or not call.condition:
            size = self.size_of(call.rows) if call.condition else call.rows  # without: the rows of its observation
            return self._alone(call, size)
        self._waiting.append(call)
        if self._lock.acquire(blocking=False):
            try:
                if not self._computing:
                    self._begin()
            finally:
                self._lock.release()
        return lambda: self._finish(call)

    def _finish(self, call: _Call) -> Tensor:
        with self._lock:
            self._end()
            if not call.done:
                self._begin()
                self._end()
        if call.error is not None:
            raise call.error
        assert call.out is not None
        return call.out

    def _alone(self, call: _Call, size: int) -> Callable[[], Tensor]:
        """Begin a call by itself, in batches of a size."""
        with self.place.entered(self.policy):
            parts = [
                call.on(*(padded(value, begin, size, self.place.device) for value in call.inputs))
                for begin in range(0, call.rows, size)
            ]
            return self.place.fetch(torch.cat(parts)[: call.rows])

    def _begin(self) -> None:
        """Begin all calls that wait, those of one kind as one batch."""
        kinds: dict[Hashable, list[_Call]] = {}
        for call in [self._waiting.popleft() for _ in range(len(self._waiting))]:
            kinds.setdefault(call.kind, []).append(call)
        for kind, calls in kinds.items():
            with _errors_to(calls), self.place.entered(self.policy):
                self._begin_together(kind, calls)

    def _begin_together(self, kind: Hashable, calls: Sequence[_Call]) -> None:
        """Fill batches with the rows of calls, and run them."""
        *starts, total = accumulate((call.rows for call in calls), initial=0)
        size = self.size_of(total)
        recording = self._recordings.get((kind, size)) or self._record(kind, size, calls[0])
        if recording is None:
            for call in calls:
                self._computing.append(_Batch([call], 0, [self._alone(call, self.size_of(call.rows))]))
            return
        for call in calls:
            call.checked = recording.checks(call.observation)
        parts = []
        for begin in range(0, total, size):
            for call, first in zip(calls, starts, strict=True):
                low, high = max(begin, first), min(begin + size, first + call.rows)
                for static, value in zip(recording.inputs, call.inputs, strict=True) if low < high else ():
                    static[low - begin : high - begin].copy_(value[low - first : high - first], non_blocking=True)
            parts.append(self.place.fetch(recording.run()))
        self._computing.append(_Batch(calls, size, parts))

    def _end(self) -> None:
        """Wait for the batches that are computed, and share out their rows."""
        for batch in self._computing:  # of one kind each
            with _errors_to(batch.calls):
                rows = torch.cat([part() for part in batch.parts])[: sum(call.rows for call in batch.calls)]
                outs = torch.split(rows, [call.rows for call in batch.calls])
                for call, out in zip(batch.calls, outs, strict=True):
                    call.out = out
                if not all(map(partial(self._agrees, size=batch.size), batch.calls)):
                    for call in batch.calls:
                        call.out = self._alone(call, batch.size)()
        self._computing.clear()

    def _agrees(self, call: _Call, size: int) -> bool:
        """Return whether a call needs no check, or has the network's own output."""
        if not (call.checked and self.recorded and call.out is not None):
            return True
        difference = float((call.out - self._alone(call, size)()).abs().max())
        if difference != 0:
            self._refuse(f"differs from the network itself by {difference:.2g}")
        return difference == 0

    def _record(self, kind: Hashable, size: int, call: _Call) -> _Recording | None:
        """Record the network for a size; rows must not depend on their place."""
        if not self.recorded:
            return None
        if len(self._recordings) == MOST:
            self._refuse(f"would be the {MOST + 1}th, for inputs of yet another shape")
            return None
        inputs = [padded(value, 0, size, self.place.device).clone() for value in call.inputs]
        try:
            run = self.place.record(call.on, *inputs)
            out = run().clone()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that cannot be recorded
            self._refuse(
                f"fails ({one_line(error.__context__ or error, 200)})"
            )  # the end of a broken recording fails, too
            return None
        for value in inputs:
            value.copy_(value.roll(1, 0))
        if not _equal(run(), out.roll(1, 0)):
            notice(
                f"{self.policy}: here a row depends on its place in a batch of {size}; a run with other lanes or workers may "
                "differ in its last digits"
            )
        self._recordings[kind, size] = _Recording(inputs, run)
        return self._recordings[kind, size]

    def _refuse(self, cause: str) -> None:
        self.recorded = False
        notice(
            f"{self.policy}: a recording of its network {cause}; it runs without, which is slower. A network with a condition "
            "must depend on the observation through it alone"
        )


@dataclass(frozen=True)
class BoundNetwork:
    """A network whose calls are computed in batches.

    Attributes:
        batches: The batches.
        network: The network, of one observation.
        observation: Number of the observation.
    """

    batches: BatchedNetwork
    network: Network
    observation: int

    def __call__(self, x: Tensor, label: Tensor, *condition: Any) -> Tensor:
        """Return the output, like x."""
        return self.start(x, label, *condition)()

    def start(self, x: Tensor, label: Tensor, *condition: Any) -> Callable[[], Tensor]:
        """Begin a call, see `gpc.score.denoiser.Starts`."""
        tensors, tree = tree_flatten(condition)
        if not all(isinstance(value, Tensor) and len(value) == len(x) for value in tensors):
            name = self.batches.policy
            raise RunError(f"policy {name!r}: each tensor of a network's condition needs a row for each of x")
        return self.batches.start(_Call(self.network, [x, label, *tensors], tree, self.observation))


def padded(value: Tensor, begin: int, size: int, device: torch.device) -> Tensor:
    """Return rows of a tensor on a device.

    Args:
        value: (rows, *).
        begin: First row.
        size: Number of rows; if there are fewer, they are repeated.
        device: The device.

    Returns:
        (size, *).
    """
    rows = value[begin : begin + size].to(device, non_blocking=True).contiguous()  # read at once: it is not pinned
    return rows if len(rows) == size else rows[torch.arange(size, device=device) % len(rows)]


@contextmanager
def _errors_to(calls: Sequence[_Call]) -> Iterator[None]:
    """Give an error to the calls, whose threads raise it."""
    try:
        yield
    except BaseException as error:
        for call in calls:
            call.error = error


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all())
