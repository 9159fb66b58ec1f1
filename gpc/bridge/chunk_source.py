"""Where chunks come from: a policy in this process or a server, behind one call that may take its time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np

from gpc.bridge.controller import ChunkReply, ChunkRequest
from gpc.errors import InputError, described
from gpc.inference.actor import pad_batch
from gpc.inference.chunk import InpaintTarget, sample_actions
from gpc.inference.settings import Sampling
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.serve.client import RemotePolicy
from gpc.serve.codec import CHUNK, KNOWN, SEED, WEIGHT
from gpc.serve.metadata import check_metadata
from gpc.types import Array


class ChunkSource(Protocol):
    """What the control loop asks for chunks; called from one thread."""

    @property
    def name(self) -> str:
        """What the record calls it."""

    @property
    def actions(self) -> ActionSpec:
        """Meaning of a chunk."""

    @property
    def observations(self) -> ObservationSpec:
        """What it reads."""

    def sample(self, request: ChunkRequest) -> Array:
        """A chunk (horizon, dim) in the robot's units, the first action `actions.start` steps from the observation."""

    def close(self) -> None:
        """The loop is over."""


@dataclass
class LocalSource:
    """A policy in this process. With `reproducible` a chunk is bitwise what `gpc evaluate` computes, at 2 to 4 times the cost.

    The noise is that of (seed, number of the ask).
    """

    policy: Policy
    sampling: Sampling
    seed: int = 0
    reproducible: bool = False

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def actions(self) -> ActionSpec:
        """The policy's."""
        return self.policy.actions

    @property
    def observations(self) -> ObservationSpec:
        """The policy's."""
        return self.policy.observations

    def sample(self, request: ChunkRequest) -> Array:
        """See `Planner`."""
        policy = self.policy  # as it is now: another one in its place takes effect with the next chunk
        rows = pad_batch(np.zeros(1, int)) if self.reproducible else np.zeros(1, int)
        observation = {key: value[None][rows] for key, value in request.observation.items()}
        known = request.known and InpaintTarget(request.known.actions[rows], request.known.weight)
        numbers = np.full(len(rows), request.number)
        chunk: Array = sample_actions(
            policy, self.sampling, observation, np.full(len(rows), self.seed), numbers, known
        )[0]
        return chunk

    def set_policy(self, policy: Policy) -> None:
        """Another policy, or the same under other weights, from the next chunk on; the running one is finished by the old.

        Raises InputError where the loop could not go on with it.
        """
        if _geometry(policy.actions) != _geometry(self.policy.actions):
            raise InputError(f"{policy.name} cannot take over from {self.policy.name}: its chunks are others")
        ours, theirs = self.policy.observations, policy.observations
        if not theirs.shapes.items() <= ours.shapes.items() or theirs.n_obs_steps > ours.n_obs_steps:
            raise InputError(f"{policy.name} cannot take over from {self.policy.name}: it reads more")
        _ = self.sampling.sigmas(policy.levels)
        self.policy = policy

    def close(self) -> None:
        """See `Planner`."""


@dataclass
class RemoteSource:
    """A policy on a `gpc serve`; its chunks begin now. Each reply has the client's own deadline, so that none hangs.

    Raises InputError where the server does not say what its chunks are, as openpi's own does not.
    """

    client: RemotePolicy
    seed: int = 0

    def __post_init__(self) -> None:
        self._served = check_metadata(self.client.metadata, self.client.url)
        spec = self._served.actions
        self._actions = replace(spec, start=0, horizon=spec.start + spec.horizon, bound=None, relative=None)

    @property
    def name(self) -> str:
        """The policy's name on the server."""
        return self._served.policy

    @property
    def actions(self) -> ActionSpec:
        """The policy's from now on, without a bound or a kind: a server sets no limit."""
        return self._actions

    @property
    def observations(self) -> ObservationSpec:
        """The policy's."""
        return self._served.spec

    def sample(self, request: ChunkRequest) -> Array:
        """See `Planner`; raises RunError if the server's answer is no finite chunk of the policy's shape."""
        message: dict[str, Any] = {**request.observation, SEED: self.seed, CHUNK: request.number}
        if request.known is not None:
            message |= {KNOWN: request.known.actions[0], WEIGHT: request.known.weight}
        return self.client.read_array(self.client.infer(message), "actions", (self._actions.horizon, self._actions.dim))

    def close(self) -> None:
        """See `Planner`."""
        self.client.close()


def _geometry(spec: ActionSpec) -> tuple[int, int, int, float]:
    return spec.start, spec.horizon, spec.dim, spec.dt


def reply_to(source: ChunkSource, request: ChunkRequest) -> ChunkReply:
    """The planner's reply; what it raises becomes the reason why there is no chunk."""
    try:
        return ChunkReply(request.number, np.asarray(source.sample(request)))
    except Exception as error:
        return ChunkReply(request.number, None, described(error))


@dataclass
class SourceThread:
    """A planner in a thread of its own; of several asks that wait the newest is answered, the others are dropped."""

    source: ChunkSource
    replies: SimpleQueue[ChunkReply] = field(default_factory=SimpleQueue)
    seconds: list[float] = field(default_factory=list)  # that each chunk took
    _asks: SimpleQueue[ChunkRequest | None] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        Thread(target=self._run, name="gpc-planner", daemon=True).start()

    def request(self, request: ChunkRequest) -> None:
        """Returns at once; the reply is in `replies` when it is."""
        self._asks.put(request)

    def received(self) -> list[ChunkReply]:
        """The replies that have come."""
        return [self.replies.get() for _ in range(self.replies.qsize())]

    def close(self) -> None:
        """End the thread when its chunk is done; one that hangs is left behind."""
        self._asks.put(None)

    def _run(self) -> None:
        while (request := self._newest()) is not None:
            began = time.monotonic()
            self.replies.put(reply_to(self.source, request))
            self.seconds.append(time.monotonic() - began)
        self.source.close()

    def _newest(self) -> ChunkRequest | None:
        request = self._asks.get()
        while request is not None and not self._asks.empty():
            request = self._asks.get()
        return request
