"""Where chunks come from: a policy in this process or a server, behind one call that may take its time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np

from gpc.bridge.controller import Ask, Reply
from gpc.errors import InputError, described
from gpc.inference.actor import padded
from gpc.inference.chunk import Known, plan
from gpc.inference.settings import Sampling
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.serve.client import RemotePolicy
from gpc.serve.codec import CHUNK, KNOWN, SEED, WEIGHT
from gpc.serve.metadata import check
from gpc.types import Array


class Planner(Protocol):
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

    def plan(self, ask: Ask) -> Array:
        """A chunk (horizon, dim) in the robot's units, the first action `actions.start` steps from the observation."""

    def close(self) -> None:
        """The loop is over."""


@dataclass
class LocalPlanner:
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

    def plan(self, ask: Ask) -> Array:
        """See `Planner`."""
        policy = self.policy  # as it is now: another one in its place takes effect with the next chunk
        rows = padded(np.zeros(1, int)) if self.reproducible else np.zeros(1, int)
        observation = {key: value[None][rows] for key, value in ask.observation.items()}
        known = ask.known and Known(ask.known.actions[rows], ask.known.weight)
        numbers = np.full(len(rows), ask.number)
        chunk: Array = plan(policy, self.sampling, observation, np.full(len(rows), self.seed), numbers, known)[0]
        return chunk

    def exchange(self, policy: Policy) -> None:
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
class RemotePlanner:
    """A policy on a `gpc serve`; its chunks begin now. Each reply has the client's own deadline, so that none hangs.

    Raises InputError where the server does not say what its chunks are, as openpi's own does not.
    """

    client: RemotePolicy
    seed: int = 0

    def __post_init__(self) -> None:
        self._served = check(self.client.metadata, self.client.url)
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

    def plan(self, ask: Ask) -> Array:
        """See `Planner`; raises RunError if the server's answer is no finite chunk of the policy's shape."""
        message: dict[str, Any] = {**ask.observation, SEED: self.seed, CHUNK: ask.number}
        if ask.known is not None:
            message |= {KNOWN: ask.known.actions[0], WEIGHT: ask.known.weight}
        return self.client.array(self.client.infer(message), "actions", (self._actions.horizon, self._actions.dim))

    def close(self) -> None:
        """See `Planner`."""
        self.client.close()


def _geometry(spec: ActionSpec) -> tuple[int, int, int, float]:
    return spec.start, spec.horizon, spec.dim, spec.dt


def answer(planner: Planner, ask: Ask) -> Reply:
    """The planner's reply; what it raises becomes the reason why there is no chunk."""
    try:
        return Reply(ask.number, np.asarray(planner.plan(ask)))
    except Exception as error:
        return Reply(ask.number, None, described(error))


@dataclass
class PlannerThread:
    """A planner in a thread of its own; of several asks that wait the newest is answered, the others are dropped."""

    planner: Planner
    replies: SimpleQueue[Reply] = field(default_factory=SimpleQueue)
    seconds: list[float] = field(default_factory=list)  # that each chunk took
    _asks: SimpleQueue[Ask | None] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        Thread(target=self._run, name="gpc-planner", daemon=True).start()

    def ask(self, ask: Ask) -> None:
        """Returns at once; the reply is in `replies` when it is."""
        self._asks.put(ask)

    def received(self) -> list[Reply]:
        """The replies that have come."""
        return [self.replies.get() for _ in range(self.replies.qsize())]

    def close(self) -> None:
        """End the thread when its chunk is done; one that hangs is left behind."""
        self._asks.put(None)

    def _run(self) -> None:
        while (ask := self._newest()) is not None:
            began = time.monotonic()
            self.replies.put(answer(self.planner, ask))
            self.seconds.append(time.monotonic() - began)
        self.planner.close()

    def _newest(self) -> Ask | None:
        ask = self._asks.get()
        while ask is not None and not self._asks.empty():
            ask = self._asks.get()
        return ask
