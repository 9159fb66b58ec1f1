"""The rollout engine: many episodes of many candidates at once, one batched policy call for all of them.

Lanes are spread over simulator processes, and those of each process over two halves. While the policy acts for one half,
the simulators work on the other. A call has all lanes of its half; for late ones it waits as long as the last call took.
A lane that finishes takes the next job at once. An episode depends on (policies, weights, sampler, seed) alone, not on
lanes, workers, order or a worker that died.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import NamedTuple, Protocol

import numpy as np

from gpc.batching import BatchThread
from gpc.errors import InputError, RunError
from gpc.machine import cores
from gpc.policy.observation import TASK
from gpc.rollout.env import LaneSpec, either
from gpc.rollout.episode import Episode, Job, Running
from gpc.rollout.simulator import HALVES, Simulator
from gpc.rollout.worker import LaneCommand
from gpc.types import Array, Frame

SLICE = 1.0  # seconds of one wait, and the most that a sleep of the machine takes off a worker's timeout
LANES = 32  # of a worker, by default

__all__ = ["Actor", "Engine", "Episode", "Job", "LaneSpec", "RolloutStats", "rollout"]


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
        lanes: environments in all workers; None for 32 in each.
        workers: simulator processes; None for one less than the cores of this process, at least 2.
        timeout: seconds for one chunk of one worker's lanes. The time in which the engine is stopped, or sleeps with its
            machine, is not counted.
        retries: how often an episode whose simulator failed is run again.
    """

    lanes: int | None = None
    workers: int | None = None
    timeout: float = 60.0
    retries: int = 3

    def __post_init__(self) -> None:
        counts = [count for count in (self.lanes, self.workers) if count is not None]
        if min(counts, default=1) < 1 or self.timeout <= 0 or self.retries < 0:
            raise InputError(f"engine: lanes, workers and timeout must be positive, retries not negative: {self}")

    def lanes_of_workers(self, jobs: int) -> list[int]:
        """Return the lanes of each worker for a number of jobs."""
        workers = self.workers or max(2, cores() - 1)
        lanes = min(self.lanes or LANES * workers, jobs)
        count = min(workers, lanes)
        return [lanes // count + (i < lanes % count) for i in range(count)]


@dataclass
class RolloutStats:
    """What a rollout took.

    Attributes:
        simulator_failures: failures of simulators, which are no failures of a policy.
        actor_seconds: time in calls of the actor.
        waiting_seconds: time in which there was none.
        calls: calls of the actor.
        rows: lanes in all calls.
        lanes: lanes with an unfinished episode in the halves that were called.
    """

    simulator_failures: list[str] = field(default_factory=list)
    actor_seconds: float = 0.0
    waiting_seconds: float = 0.0
    calls: int = 0
    rows: int = 0
    lanes: int = 0

    def add(self, other: RolloutStats) -> None:
        """Add the figures of another engine."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class _Waiting(NamedTuple):
    """An episode that waits for its next chunk, and the lane in which it runs."""

    worker: Simulator
    lane: int
    episode: Running


@dataclass
class _Half:
    """One half of the lanes of all workers.

    Attributes:
        waiting: lanes that wait for a chunk.
        simulated: number of lanes at work.
    """

    waiting: list[_Waiting] = field(default_factory=list)
    simulated: int = 0


@dataclass
class _Run:
    """The state of one rollout."""

    jobs: deque[Job]
    actor: Actor
    spec: LaneSpec
    engine: Engine
    stats: RolloutStats
    attempts: Counter[Job] = field(default_factory=Counter)
    workers: list[Simulator] = field(default_factory=list)
    startup_retries: int = 0  # failures while starting that are still allowed; 0 until one simulator has worked
    halves: list[_Half] = field(default_factory=lambda: [_Half() for _ in range(HALVES)])
    calls: dict[Future[Array], list[_Waiting]] = field(default_factory=dict)
    patience: float = SLICE  # seconds that late lanes are waited for: those of the last call
    idle_since: float = 0.0  # when the actor had nothing to do and a lane was waiting; 0: not so

    def start(self) -> None:
        self.wake, self.wakes = os.pipe()
        self.thread = BatchThread(self._act, HALVES, "gpc-actor")
        for number, lanes in enumerate(self.engine.lanes_of_workers(len(self.jobs))):
            self.workers.append(Simulator(self.spec, lanes, self.engine.timeout, number))

    def close(self) -> None:
        """End the workers, and wait for a call in progress.

        torch would abort a process that ends meanwhile.
        """
        for worker in self.workers:
            worker.close()
        for call in self.calls:
            call.cancel()
        self.thread.close()
        os.close(self.wake)
        os.close(self.wakes)

    def episodes(self) -> Iterator[Episode]:
        """Serve workers and actor until every job is done."""
        while self.calls or any(worker.due for worker in self.workers):
            busy = [(worker, worker.seconds_left) for worker in self.workers if worker.due]
            longest = min([SLICE, self._until_call(), *(seconds_left for _, seconds_left in busy)])
            begin = time.monotonic()
            ready = wait([self.wake, *(worker.connection for worker, _ in busy)], timeout=longest)
            waited = time.monotonic() - begin
            self.stats.waiting_seconds += 0 if self.calls else waited
            if self.wake in ready:
                os.read(self.wake, 4096)
            for call in [call for call in self.calls if call.done()]:
                self._hand_out(self.calls.pop(call), call.result())
            for worker, seconds_left in busy:
                worker.seconds_left = seconds_left - min(waited, longest)  # a longer wait: this process was stopped
                if worker.seconds_left <= 0 or worker.connection.poll(0):
                    yield from self._serve(worker)
            self._call()

    def _serve(self, worker: Simulator) -> Iterator[Episode]:
        """Take the results of one message, and start jobs in the lanes that are free."""
        try:
            results = worker.receive()
        except RunError as error:
            self._replace(worker, str(error))
            return
        except InputError as error:
            raise RunError(f"{self.spec.env.name}: {error}") from None
        self.startup_retries = self.engine.retries
        for result in results:
            episode = worker.episodes[result.lane]
            half = self.halves[worker.half_of(result.lane)]
            assert episode is not None
            if not np.isfinite(result.rewards).all():
                raise RunError(f"{self.spec.env.name} returned a reward of NaN or infinity (seed {episode.job.seed})")
            half.simulated -= 1
            episode.rewards += result.rewards
            episode.success = either(episode.success, result.success)
            if result.done:
                worker.episodes[result.lane] = None
                yield episode.finish()
            else:
                episode.observations.append(result.observation)
                half.waiting.append(_Waiting(worker, result.lane, episode))
        self._assign_jobs(worker)

    def _assign_jobs(self, worker: Simulator) -> None:
        """Start the next jobs in the free lanes of a worker."""
        commands = []
        for lane, episode in enumerate(worker.episodes):
            if episode is None and self.jobs:
                job = self.jobs.popleft()
                worker.episodes[lane] = Running(job)
                commands.append(LaneCommand(lane, job.seed, None))
        self._send(worker, commands)

    def _send(self, worker: Simulator, commands: Sequence[LaneCommand]) -> None:
        """Send the commands of each half as a message of its own."""
        for number, half in enumerate(self.halves):
            message = [command for command in commands if worker.half_of(command.lane) == number]
            if message:
                half.simulated += len(message)
                worker.send(message)

    def _until_call(self) -> float:
        """Return the seconds until the actor is called without late lanes."""
        if not self.idle_since:
            return SLICE
        return max(0.0, self.idle_since + self.patience - time.monotonic())

    def _call(self) -> None:
        """Call the actor for a half whose lanes wait, or without those that are late."""
        for half in self.halves:
            if half.waiting and not half.simulated:
                self._submit(half)
        idle = not self.calls and any(half.waiting for half in self.halves)
        self.idle_since = (self.idle_since or time.monotonic()) if idle else 0.0
        if idle and not self._until_call():
            self._submit(max(self.halves, key=lambda half: len(half.waiting)))

    def _submit(self, half: _Half) -> None:
        self.stats.lanes += len(half.waiting) + half.simulated
        call = self.thread.submit(half.waiting)
        self.calls[call] = half.waiting
        call.add_done_callback(lambda call: os.write(self.wakes, b"."))
        half.waiting, self.idle_since = [], 0.0

    def _act(self, calls: Sequence[list[_Waiting]]) -> list[Array]:
        """Call the actor once for the lanes of several calls; runs in the actor's thread."""
        episodes = [each.episode for waiting in calls for each in waiting]
        newest = [episode.observations[-1] for episode in episodes]
        observation = {key: np.stack([o[key] for o in newest]) for key in newest[0]}
        weights = np.array([episode.job.weights for episode in episodes], np.float64)
        seeds = np.array([episode.job.seed for episode in episodes])
        chunks = np.array([len(episode.actions) for episode in episodes])
        begin = time.monotonic()
        actions = self.actor(observation, weights, seeds, chunks)
        self.patience = time.monotonic() - begin
        self.stats.actor_seconds += self.patience
        self.stats.calls += 1
        self.stats.rows += len(episodes)
        if actions.shape[:2] != (len(episodes), self.spec.n_action_steps) or actions.ndim != 3:
            shape = (len(episodes), self.spec.n_action_steps, "action")
            raise RunError(f"the policy returned actions of shape {actions.shape}, not {shape}")
        return np.split(actions, np.cumsum([len(waiting) for waiting in calls])[:-1])

    def _hand_out(self, waiting: Sequence[_Waiting], actions: Array) -> None:
        """Send the actions of a call to its lanes, but those whose worker was replaced."""
        unrecorded = {TASK, *self.spec.images}
        commands: dict[Simulator, list[LaneCommand]] = {}
        for (worker, lane, episode), chunk in zip(waiting, actions, strict=True):
            if not np.isfinite(chunk).all():
                raise RunError(
                    f"the policy returned NaN or infinity (weights {episode.job.weights}, seed {episode.job.seed})"
                )
            episode.actions.append(chunk)
            last = episode.observations[-1]
            episode.observations[-1] = {key: last[key] for key in last.keys() - unrecorded}
            if worker in self.workers:
                commands.setdefault(worker, []).append(LaneCommand(lane, None, chunk))
        for worker, sent in commands.items():
            self._send(worker, sent)

    def _replace(self, worker: Simulator, cause: str) -> None:
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
        self._forget(worker)
        self.workers[worker.number] = Simulator(self.spec, len(worker.episodes), self.engine.timeout, worker.number)

    def _forget(self, worker: Simulator) -> None:
        """Take the lanes of a worker out of the halves."""
        waiting = [each for half in self.halves for each in half.waiting]
        called = [each for lanes in self.calls.values() for each in lanes]
        at_rest = {each.lane for each in [*waiting, *called] if each.worker is worker}
        for lane, episode in enumerate(worker.episodes):
            if episode is not None and lane not in at_rest:
                self.halves[worker.half_of(lane)].simulated -= 1
        for half in self.halves:
            half.waiting = [each for each in half.waiting if each.worker is not worker]


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
        run.close()
