"""The rollout engine: many episodes of many candidates at once, one batched policy call for all of them.

Lanes are spread over simulator processes. A process that is ready is served with one call for all of its lanes, and
gets their next chunks; while it simulates, the network serves another process. A lane that finishes takes the next job
at once. An episode depends on (policies, weights, sampler, seed) alone, not on lanes, workers, order or a worker that
died.
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

import cloudpickle
import numpy as np

from gpc.errors import InputError, RunError
from gpc.policy.observation import TASK
from gpc.rollout.env import LaneSpec
from gpc.rollout.gl import visible_to
from gpc.rollout.process import environment, python, search_path
from gpc.rollout.worker import Failure, LaneCommand, LaneResult, either
from gpc.types import Array, Frame

SLICE = 1.0  # seconds of one wait, and the most that a sleep of the machine takes off a worker's timeout

__all__ = ["Actor", "Engine", "Episode", "Job", "LaneSpec", "RolloutStats", "rollout"]


class Job(NamedTuple):
    """An episode to run: candidate, weights, seed of initial state and noise."""

    candidate: int
    weights: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        job: candidate, weights and seed.
        success: whether the task was solved at any step.
        score: largest reward.
        steps: number of executed actions.
        trajectory: "action" (steps, action), "reward" (steps,), and each observation of numbers at every decision,
        (chunks, dim).
        reported: whether the environment reports success at all.
    """

    job: Job
    success: bool
    score: float
    steps: int
    trajectory: dict[str, Array]
    reported: bool = True


class Actor(Protocol):
    """A policy for the engine; rows of a batch must not depend on each other."""

    def __call__(self, observation: Frame, weights: Array, seeds: Array, chunks: Array) -> Array:
        """Return the next actions of a batch of lanes.

        Args:
            observation: key -> (batch, n_obs_steps, *shape).
            weights: (batch, K).
            seeds: seeds of the episodes, (batch,).
            chunks: numbers of the chunks in their episodes, (batch,).

        Returns:
            Actions (batch, n_action_steps, action) in the environment's units.
        """


@dataclass(frozen=True)
class Engine:
    """Settings of a rollout; none of them changes a result.

    Attributes:
        lanes: environments in all workers.
        workers: simulator processes.
        timeout: seconds for one chunk of one worker's lanes. Only the time in which the engine waits is counted, not
            the time in which it computes, is stopped or sleeps with its machine.
        retries: how often an episode whose simulator failed is run again.
    """

    lanes: int = 64
    workers: int = 2
    timeout: float = 60.0
    retries: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or self.lanes < 1 or self.timeout <= 0 or self.retries < 0:
            raise InputError(f"engine: lanes, workers and timeout must be positive, retries not negative: {self}")


@dataclass
class RolloutStats:
    """Simulator failures, which are no failures of a policy, and times in seconds."""

    simulator_failures: list[str] = field(default_factory=list)
    actor_seconds: float = 0.0
    waiting_seconds: float = 0.0

    def add(self, other: RolloutStats) -> None:
        """Add the figures of another engine."""
        self.simulator_failures += other.simulator_failures
        self.actor_seconds += other.actor_seconds
        self.waiting_seconds += other.waiting_seconds


@dataclass
class _Running:
    """The unfinished episode of one lane."""

    job: Job
    success: bool | None = None
    rewards: list[float] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    observations: list[Frame] = field(default_factory=list)

    def finish(self) -> Episode:
        steps = len(self.rewards)
        trajectory = {key: np.stack([o[key][-1] for o in self.observations]) for key in self.observations[0]}
        trajectory["action"] = np.concatenate(self.actions)[:steps].astype(np.float32)
        trajectory["reward"] = np.array(self.rewards, np.float32)
        reported = self.success is not None
        return Episode(self.job, bool(self.success), max(self.rewards), steps, trajectory, reported)


class _Worker:
    """The engine's end of one simulator process, and the episodes in its lanes."""

    def __init__(self, spec: LaneSpec, lanes: int, timeout: float, number: int) -> None:
        ours, theirs = socket.socketpair()
        command = python("-m", "gpc.rollout.worker", str(theirs.fileno()))
        self.process = subprocess.Popen(
            command,
            env=environment() | visible_to(number),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.episodes: list[_Running | None] = [None] * lanes
        self.timeout, self.started = timeout, False
        self.seconds_left: float | None = None  # until the answer is late; None: no answer is due
        self.send(search_path())
        self.send((spec, lanes))

    def send(self, message: object) -> None:
        self.seconds_left = self.timeout
        with suppress(OSError):  # the next read raises if the process died
            self.connection.send_bytes(
                cloudpickle.dumps(message)
            )  # unlike pickle, also what a script or notebook defines

    def receive(self) -> list[LaneResult]:
        """Return the results of all commands.

        Raises:
            RunError: If the process raised, died, or is late.
            InputError: If it raised that, so that another process would raise it, too.
        """
        if self.seconds_left is not None and not self.connection.poll(0):
            raise RunError(f"the simulator did not answer within {self.timeout:g} s")
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            code = self.process.wait()
            raise RunError(f"the simulator process died (exit code {code})") from None
        if isinstance(answer, Failure):
            raise RunError(answer.cause) if answer.again else InputError(answer.cause)
        self.started, self.seconds_left = True, None
        return cast(list[LaneResult], answer)

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


@dataclass
class _Run:
    """The state of one rollout."""

    jobs: deque[Job]
    actor: Actor
    spec: LaneSpec
    engine: Engine
    stats: RolloutStats
    attempts: Counter[Job] = field(default_factory=Counter)
    workers: list[_Worker] = field(default_factory=list)
    startup_retries: int = 0  # failures while starting that are still allowed; 0 until one simulator has worked

    def start(self) -> None:
        lanes = min(self.engine.lanes, len(self.jobs))
        count = min(self.engine.workers, lanes)
        shares = [lanes // count + (i < lanes % count) for i in range(count)]
        for number, share in enumerate(shares):
            self.workers.append(_Worker(self.spec, share, self.engine.timeout, number))

    def episodes(self) -> Iterator[Episode]:
        """Serve the workers that are ready until every job is done."""
        while busy := [(w, w.seconds_left) for w in self.workers if w.seconds_left is not None]:
            longest = min(SLICE, *(seconds_left for _, seconds_left in busy))
            begin = time.monotonic()
            wait([worker.connection for worker, _ in busy], timeout=longest)
            waited = time.monotonic() - begin
            self.stats.waiting_seconds += waited
            for worker, seconds_left in busy:
                worker.seconds_left = seconds_left - min(waited, longest)  # a longer wait: this process was stopped
                if worker.seconds_left <= 0 or worker.connection.poll(0):
                    yield from self._serve(worker)

    def _serve(self, worker: _Worker) -> Iterator[Episode]:
        try:
            results = worker.receive()
        except RunError as error:
            self._replace(worker, str(error))
            return
        except InputError as error:
            raise RunError(f"{self.spec.env.name}: {error}") from None
        self.startup_retries = self.engine.retries
        waiting = []
        for result in results:
            episode = worker.episodes[result.lane]
            assert episode is not None
            if not np.isfinite(result.rewards).all():
                raise RunError(f"{self.spec.env.name} returned a reward of NaN or infinity (seed {episode.job.seed})")
            episode.rewards += result.rewards
            episode.success = either(episode.success, result.success)
            if result.done:
                worker.episodes[result.lane] = None
                yield episode.finish()
            else:
                episode.observations.append(result.observation)
                waiting.append(result.lane)
        commands = self._act(worker, waiting) + self._assign_jobs(worker)
        if commands:
            worker.send(commands)

    def _assign_jobs(self, worker: _Worker) -> list[LaneCommand]:
        """Start the next jobs in the free lanes of a worker."""
        commands = []
        for lane, episode in enumerate(worker.episodes):
            if episode is None and self.jobs:
                job = self.jobs.popleft()
                worker.episodes[lane] = _Running(job)
                commands.append(LaneCommand(lane, job.seed, None))
        return commands

    def _act(self, worker: _Worker, lanes: list[int]) -> list[LaneCommand]:
        """Call the actor once for all lanes of a worker that wait for a chunk."""
        if not lanes:
            return []
        episodes = [cast(_Running, worker.episodes[lane]) for lane in lanes]
        newest = [episode.observations[-1] for episode in episodes]
        observation = {key: np.stack([o[key] for o in newest]) for key in newest[0]}
        weights = np.array([episode.job.weights for episode in episodes], np.float64)
        seeds = np.array([episode.job.seed for episode in episodes])
        chunks = np.array([len(episode.actions) for episode in episodes])
        unrecorded = {TASK, *self.spec.images}
        begin = time.monotonic()
        actions = self.actor(observation, weights, seeds, chunks)
        self.stats.actor_seconds += time.monotonic() - begin
        if actions.shape[:2] != (len(lanes), self.spec.n_action_steps) or actions.ndim != 3:
            shape = (len(lanes), self.spec.n_action_steps, "action")
            raise RunError(f"the policy returned actions of shape {actions.shape}, not {shape}")
        for episode, chunk in zip(episodes, actions, strict=True):
            if not np.isfinite(chunk).all():
                raise RunError(
                    f"the policy returned NaN or infinity (weights {episode.job.weights}, seed {episode.job.seed})"
                )
            episode.actions.append(chunk)
            last = episode.observations[-1]
            episode.observations[-1] = {key: last[key] for key in last.keys() - unrecorded}
        return [LaneCommand(lane, None, chunk) for lane, chunk in zip(lanes, actions, strict=True)]

    def _replace(self, worker: _Worker, cause: str) -> None:
        """Replace a failed worker by a new one, and put its jobs back."""
        lost = [episode.job for episode in worker.episodes if episode is not None]
        worker.close()
        failure = f"{self.spec.env.name}: {cause}"
        if not worker.started:
            if not self.startup_retries:
                raise RunError(f"the simulator {failure} (while starting; gpc doctor lists what is missing)")
            self.startup_retries -= 1
        self.stats.simulator_failures.append(failure)
        self.attempts.update(lost)
        hopeless = [job for job in lost if self.attempts[job] > self.engine.retries]
        if hopeless:
            seeds = ", ".join(str(job.seed) for job in hopeless[:3])
            raise RunError(f"gave up after {self.engine.retries} retries of seed {seeds}: {failure}")
        self.jobs.extendleft(reversed(lost))
        number = self.workers.index(worker)
        self.workers[number] = _Worker(self.spec, len(worker.episodes), self.engine.timeout, number)


def rollout(
    jobs: Sequence[Job], actor: Actor, spec: LaneSpec, engine: Engine | None = None, stats: RolloutStats | None = None
) -> Iterator[Episode]:
    """Run every job and yield each episode as it finishes, in any order.

    A worker that dies, hangs (no answer within `engine.timeout`) or raises is replaced, and its episodes are run again
    from their start. Closing the iterator ends the workers.

    Args:
        jobs: episodes to run.
        actor: policy.
        spec: environment, and what the policy reads of it.
        engine: settings; the defaults of `Engine` if None.
        stats: counts simulator failures, apart from failures of the policy, and times.

    Raises:
        RunError: If an episode's simulator failed more than `engine.retries` times, a simulator cannot start, or the
            actor returns actions that are not finite or of another shape.
    """
    run = _Run(deque(jobs), actor, spec, engine or Engine(), stats or RolloutStats())
    if not run.jobs:
        return
    try:
        run.start()
        yield from run.episodes()
    finally:
        for worker in run.workers:
            worker.close()
