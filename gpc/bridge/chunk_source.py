"""Where chunks come from: a policy in this process or on a server, behind one call that may take its time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gpc.bridge.controller import ChunkReply, ChunkRequest
from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError, type_and_text
from gpc.inference.actor import pad_batch
from gpc.inference.batched import CHECKED
from gpc.inference.chunk import sample_actions
from gpc.inference.device import Device
from gpc.inference.placement import Placer
from gpc.inference.settings import Sampling
from gpc.inference.threads import Threads
from gpc.machine import cores
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.serve.client import RemotePolicy
from gpc.serve.codec import CHUNK, KNOWN, SEED, WEIGHT
from gpc.serve.metadata import check_metadata
from gpc.types import Array

LAST_CHUNK = 2.0  # seconds that the end of an episode waits for the chunk in progress


@runtime_checkable
class WarmsUp(Protocol):
    """A source whose first chunks take longer than the others."""

    def warm_up(self) -> None:
        """Sample them, before the episode."""


class ChunkSource(Protocol):
    """Samples chunks for the control loop; called from one thread."""

    @property
    def name(self) -> str:
        """Name in the record."""

    @property
    def actions(self) -> ActionSpec:
        """Meaning of a chunk."""

    @property
    def observations(self) -> ObservationSpec:
        """Observations that `sample` reads."""

    def sample(self, request: ChunkRequest) -> Array:
        """Return a chunk (horizon, dim) in the robot's units.

        Its first action is `actions.start` steps from the observation.
        """

    def close(self) -> None:
        """Free what the source holds, at the end of the episode."""


@dataclass
class LocalSource:
    """A policy in this process.

    The noise of a chunk is that of (seed, number of the request).

    Attributes:
        policy: the policy, or a composition.
        sampling: settings of the sampler.
        seed: seed of the noise.
        reproducible: pad the batch and compute with one thread, so that a chunk is bitwise that of `gpc evaluate`, at 2 to 4
            times the cost. Without, networks compute with several threads and leave a core to the control loop.
        device: where networks compute.
    """

    policy: Policy
    sampling: Sampling
    seed: int = 0
    reproducible: bool = False
    device: Device = Device("cpu")

    def __post_init__(self) -> None:
        self._place = Placer(self.device, self.reproducible)
        self._placed = self._place(self.policy)
        self._threads = Threads(1 if self.reproducible else cores() - 1)

    @property
    def name(self) -> str:
        """Name of the policy."""
        return self.policy.name

    @property
    def actions(self) -> ActionSpec:
        """Actions of the policy."""
        return self.policy.actions

    @property
    def observations(self) -> ObservationSpec:
        """Observations of the policy."""
        return self.policy.observations

    def sample(self, request: ChunkRequest) -> Array:
        """Return a chunk (horizon, dim) of the policy."""
        policy = self._placed  # `set_policy` takes effect with the next chunk
        rows = pad_batch(np.zeros(1, int)) if self.reproducible else np.zeros(1, int)
        observation = {key: value[None][rows] for key, value in request.observation.items()}
        known = request.known and InpaintTarget(request.known.actions[rows], request.known.mask)
        seeds, numbers = np.full(len(rows), self.seed), np.full(len(rows), request.number)
        chunk: Array = self._threads.sample(
            lambda: sample_actions(policy, self.sampling, observation, seeds, numbers, known)
        )[0]
        return chunk

    def warm_up(self) -> None:
        """Sample the chunks in which recordings of the networks are made and compared.

        A robot would wait for them. What they raise is raised by the first chunk of the episode, too.
        """
        for number in range(CHECKED):
            reply_to(self, ChunkRequest(number, 0, 0.0, self.observations.plain(number), None))

    def set_policy(self, policy: Policy) -> None:
        """Use another policy, or the same under other weights, from the next chunk on.

        A chunk that is being sampled is finished by the old policy.

        Raises:
            InputError: If chunks of the policy have another shape or step, or it reads more observations.
        """
        if _shape(policy.actions) != _shape(self.policy.actions):
            raise InputError(f"{policy.name} cannot take over from {self.policy.name}: its chunks are others")
        ours, theirs = self.policy.observations, policy.observations
        if not theirs.shapes.items() <= ours.shapes.items() or theirs.n_obs_steps > ours.n_obs_steps:
            raise InputError(f"{policy.name} cannot take over from {self.policy.name}: it reads more")
        _ = self.sampling.sigmas(policy.levels)
        self._placed = self._place(policy)
        self.policy = policy

    def close(self) -> None:
        """Do nothing."""


@dataclass
class RemoteSource:
    """A policy on a `gpc serve`.

    Its chunks begin at the observation. Each reply has the client's deadline.

    Attributes:
        client: connection to the server.
        seed: seed of the noise.

    Raises:
        InputError: If the server does not describe its chunks, as openpi's own server does not.
    """

    client: RemotePolicy
    seed: int = 0

    def __post_init__(self) -> None:
        self._served = check_metadata(self.client.metadata, self.client.url)
        spec = self._served.actions
        self._actions = replace(spec, start=0, horizon=spec.start + spec.horizon, bound=None, relative=None)

    @property
    def name(self) -> str:
        """Name of the policy on the server."""
        return self._served.policy

    @property
    def actions(self) -> ActionSpec:
        """Actions of the policy from now on, without a range or a kind."""
        return self._actions

    @property
    def observations(self) -> ObservationSpec:
        """Observations of the policy."""
        return self._served.spec

    @property
    def n_action_steps(self) -> int | None:
        """Action steps that the server declares."""
        return self._served.n_action_steps

    def sample(self, request: ChunkRequest) -> Array:
        """Return a chunk (horizon, dim) of the server.

        Raises:
            RunError: If the server's answer is no finite chunk of the policy's shape.
        """
        message: dict[str, Any] = {**request.observation, SEED: self.seed, CHUNK: request.number}
        if request.known is not None:
            message |= {KNOWN: request.known.actions[0], WEIGHT: request.known.mask}
        return self.client.read_array(self.client.infer(message), "actions", (self._actions.horizon, self._actions.dim))

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


def _shape(spec: ActionSpec) -> tuple[int, int, int, float]:
    return spec.start, spec.horizon, spec.dim, spec.dt


def reply_to(source: ChunkSource, request: ChunkRequest) -> ChunkReply:
    """Return the reply of a source; its error becomes the reply's reason."""
    try:
        return ChunkReply(request.number, np.asarray(source.sample(request)))
    except Exception as error:
        return ChunkReply(request.number, None, type_and_text(error))


@dataclass
class SourceThread:
    """Samples in a thread of its own.

    Of several waiting requests the newest is answered, the others are dropped.

    Attributes:
        source: source of the chunks.
        replies: replies that `received` has not returned yet.
        durations: seconds that each chunk took.
    """

    source: ChunkSource
    replies: SimpleQueue[ChunkReply] = field(default_factory=SimpleQueue)
    durations: list[float] = field(default_factory=list)
    _requests: SimpleQueue[ChunkRequest | None] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        self._thread = Thread(target=self._run, name="gpc-chunks", daemon=True)
        self._thread.start()

    def request(self, request: ChunkRequest) -> None:
        """Queue a request, without waiting; its reply will be in `replies`."""
        self._requests.put(request)

    def received(self) -> list[ChunkReply]:
        """Return the replies that have come, without waiting."""
        return [self.replies.get() for _ in range(self.replies.qsize())]

    def close(self) -> None:
        """End the thread when its chunk is done; a thread that hangs is left behind.

        A process that ends while torch computes in a thread is aborted.
        """
        self._requests.put(None)
        self._thread.join(LAST_CHUNK)

    def _run(self) -> None:
        while (request := self._newest()) is not None:
            start = time.monotonic()
            self.replies.put(reply_to(self.source, request))
            self.durations.append(time.monotonic() - start)
        self.source.close()

    def _newest(self) -> ChunkRequest | None:
        request = self._requests.get()
        while request is not None and not self._requests.empty():
            request = self._requests.get()
        return request
