"""The rollout engine: many episodes of many candidates at once, one batched policy call for all of them.

Lanes are spread over simulator processes. Whichever process is ready is served with one call for all of its lanes and
sent their next chunks; while it simulates, the network serves another. A lane that finishes takes the next job at once.
An episode depends on (policies, weights, sampler, seed) alone: not on lanes, workers, order, or on a worker that died.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import NamedTuple, Protocol, cast

import numpy as np

from gpc.errors import InputError, RunError
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.process import environment, python, search_path
from gpc.rollout.worker import Failure, Order, Report
from gpc.types import Array, Frame

SLICE = 1.0  # seconds of one wait: however long the machine sleeps in it, a worker's timeout loses no more

__all__ = ["Actor", "Engine", "EnvSpec", "Episode", "Health", "Job", "rollout"]


class Job(NamedTuple):
    """One episode to run: a candidate's number and weights, and the seed of the initial state and of all noise."""

    candidate: int
    weights: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Episode:
    """A finished episode. `score` is the largest reward; `trajectory` holds "action" (steps, action), "reward" (steps,)
    and each numeric observation at every decision, (chunks, dim).
    """

    job: Job
    success: bool
    score: float
    steps: int
    trajectory: dict[str, Array]


class Actor(Protocol):
    """A policy for the engine: one call for a batch of lanes. A row's result must not depend on the other rows."""

    def __call__(self, observation: Frame, weights: Array, seeds: Array, chunks: Array) -> Array:
        """observation[key] (batch, n_obs_steps, *shape), weights (batch, K), seeds and chunk numbers (batch,).

        Returns (batch, n_action_steps, action) in the environment's units.
        """


@dataclass(frozen=True)
class Engine:
    """How to run: none of it changes a result.

    `timeout` is in seconds for one chunk of one worker's lanes, and counts while the engine waits: not while it computes, is
    stopped or sleeps with its machine.
    """

    lanes: int = 64
    workers: int = 2
    timeout: float = 60.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or self.lanes < 1 or self.timeout <= 0 or self.retries < 0:
            raise InputError(f"engine: lanes, workers and timeout must be positive, retries not negative: {self}")


@dataclass
class Health:
    """What happened beside the episodes: broken workers (infrastructure, not policy failures) and where time went."""

    breakdowns: list[str] = field(default_factory=list)
    actor_seconds: float = 0.0
    waiting_seconds: float = 0.0

    def add(self, other: Health) -> None:
        """Count what happened in another engine, too."""
        self.breakdowns += other.breakdowns
        self.actor_seconds += other.actor_seconds
        self.waiting_seconds += other.waiting_seconds


def _numeric(observation: Frame) -> Frame:
    """Without images and text."""
    return {key: value for key, value in observation.items() if value.dtype != np.uint8}


@dataclass
class _Flight:
    """An episode under way in one lane."""

    job: Job
    success: bool = False
    rewards: list[float] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    observations: list[Frame] = field(default_factory=list)

    def land(self) -> Episode:
        steps = len(self.rewards)
        keys = _numeric(self.observations[0])
        trajectory = {key: np.stack([o[key][-1] for o in self.observations]) for key in keys}
        trajectory["action"] = np.concatenate(self.actions)[:steps].astype(np.float32)
        trajectory["reward"] = np.array(self.rewards, np.float32)
        return Episode(self.job, self.success, max(self.rewards), steps, trajectory)


class _Worker:
    """The engine's end of one simulator process and the flights in its lanes."""

    def __init__(self, env: EnvSpec, lanes: int, timeout: float) -> None:
        ours, theirs = socket.socketpair()
        command = python("-m", "gpc.rollout.worker", str(theirs.fileno()))
        self.process = subprocess.Popen(
            command, env=environment(), pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.flights: list[_Flight | None] = [None] * lanes
        self.timeout, self.started = timeout, False
        self.patience: float | None = None  # seconds until it is late; None: nothing is expected of it
        self.send([search_path(), env, lanes])

    def send(self, message: object) -> None:
        self.patience = self.timeout
        with suppress(OSError):  # if it died, the read that follows says so
            self.connection.send(message)

    def receive(self) -> list[Report]:
        """The reports; raises RunError with the cause if the process raised, died, or is late."""
        if self.patience is not None and not self.connection.poll(0):
            raise RunError(f"the simulator did not answer within {self.timeout:g} s")
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            raise RunError(f"the simulator process died (exit code {code})") from None
        if isinstance(answer, Failure):
            raise RunError(answer.cause)
        self.started, self.patience = True, None
        return cast(list[Report], answer)

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


@dataclass
class _Run:
    """The state of one rollout."""

    jobs: deque[Job]
    actor: Actor
    env: EnvSpec
    engine: Engine
    health: Health
    attempts: Counter[Job] = field(default_factory=Counter)
    workers: list[_Worker] = field(default_factory=list)
    spare_starts: int = 0  # how often a simulator may still break while starting: not before one has worked

    def start(self) -> None:
        lanes = min(self.engine.lanes, len(self.jobs))
        count = min(self.engine.workers, lanes)
        shares = [lanes // count + (i < lanes % count) for i in range(count)]
        for share in shares:
            self.workers.append(_Worker(self.env, share, self.engine.timeout))

    def episodes(self) -> Iterator[Episode]:
        """Serve whichever worker is ready until every job is done."""
        while busy := [(w, w.patience) for w in self.workers if w.patience is not None]:
            longest = min(SLICE, *(patience for _, patience in busy))
            begin = time.monotonic()
            wait([worker.connection for worker, _ in busy], timeout=longest)
            waited = time.monotonic() - begin
            self.health.waiting_seconds += waited
            for worker, patience in busy:
                worker.patience = patience - min(waited, longest)  # more has passed only if this process was stopped
                if worker.patience <= 0 or worker.connection.poll(0):
                    yield from self._serve(worker)

    def _serve(self, worker: _Worker) -> Iterator[Episode]:
        try:
            reports = worker.receive()
        except RunError as error:
            self._replace(worker, str(error))
            return
        self.spare_starts = self.engine.retries
        waiting = []
        for report in reports:
            flight = worker.flights[report.lane]
            assert flight is not None
            if not np.isfinite(report.rewards).all():
                raise RunError(f"{self.env.target} returned a reward of NaN or infinity (seed {flight.job.seed})")
            flight.rewards += report.rewards
            flight.success |= report.success
            if report.done:
                worker.flights[report.lane] = None
                yield flight.land()
            else:
                flight.observations.append(report.observation)
                waiting.append(report.lane)
        orders = self._decide(worker, waiting) + self._board(worker)
        if orders:
            worker.send(orders)

    def _board(self, worker: _Worker) -> list[Order]:
        """Give each free lane the next job."""
        orders = []
        for lane, flight in enumerate(worker.flights):
            if flight is None and self.jobs:
                job = self.jobs.popleft()
                worker.flights[lane] = _Flight(job)
                orders.append(Order(lane, job.seed, None))
        return orders

    def _decide(self, worker: _Worker, lanes: list[int]) -> list[Order]:
        """One actor call for all lanes of a worker that wait for a chunk."""
        if not lanes:
            return []
        flights = [cast(_Flight, worker.flights[lane]) for lane in lanes]
        newest = [f.observations[-1] for f in flights]
        observation = {key: np.stack([o[key] for o in newest]) for key in newest[0]}
        weights = np.array([f.job.weights for f in flights], np.float64)
        seeds = np.array([f.job.seed for f in flights])
        chunks = np.array([len(f.actions) for f in flights])
        begin = time.monotonic()
        actions = self.actor(observation, weights, seeds, chunks)
        self.health.actor_seconds += time.monotonic() - begin
        if actions.shape[:2] != (len(lanes), self.env.n_action_steps) or actions.ndim != 3:
            wanted = (len(lanes), self.env.n_action_steps, "action")
            raise RunError(f"the policy returned actions of shape {actions.shape}, not {wanted}")
        for flight, chunk in zip(flights, actions, strict=True):
            if not np.isfinite(chunk).all():
                raise RunError(
                    f"the policy returned NaN or infinity (weights {flight.job.weights}, seed {flight.job.seed})"
                )
            flight.actions.append(chunk)
            flight.observations[-1] = _numeric(flight.observations[-1])
        return [Order(lane, None, chunk) for lane, chunk in zip(lanes, actions, strict=True)]

    def _replace(self, worker: _Worker, cause: str) -> None:
        """End a broken worker, put its jobs back and start another in its place."""
        lost = [flight.job for flight in worker.flights if flight is not None]
        worker.close()
        where = f"{self.env.target}: {cause}"
        if not worker.started:
            if not self.spare_starts:
                raise RunError(f"the simulator {where} (while starting; gpc doctor says what is missing)")
            self.spare_starts -= 1
        self.health.breakdowns.append(where)
        self.attempts.update(lost)
        tired = [job for job in lost if self.attempts[job] > self.engine.retries]
        if tired:
            seeds = ", ".join(str(job.seed) for job in tired[:3])
            raise RunError(f"gave up after {self.engine.retries} retries of seed {seeds}: {where}")
        self.jobs.extendleft(reversed(lost))
        self.workers[self.workers.index(worker)] = _Worker(self.env, len(worker.flights), self.engine.timeout)


def rollout(
    jobs: Sequence[Job], actor: Actor, env: EnvSpec, engine: Engine | None = None, health: Health | None = None
) -> Iterator[Episode]:
    """Run every job and yield each episode as it finishes, in any order; closing the iterator ends the workers.

    A worker that dies, hangs (no answer within `engine.timeout`) or raises is replaced and its episodes are run again from
    their start; `health` counts these apart from failures of the policy. Raises RunError where an episode broke its
    simulator more than `engine.retries` times, where a simulator cannot start, or where the actor returns no finite
    actions of the right shape.
    """
    run = _Run(deque(jobs), actor, env, engine or Engine(), health or Health())
    if not run.jobs:
        return
    try:
        run.start()
        yield from run.episodes()
    finally:
        for worker in run.workers:
            worker.close()
