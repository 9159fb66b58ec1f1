"""Executors of episodes: this machine, or a Ray cluster.

A cluster gets the jobs in shards. Each of its actors has the policies and a rollout engine. An episode depends on
(policies, weights, sampler, seed) alone, so a shard whose node died runs again elsewhere and yields the episodes of a
local run.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Protocol

from gpc.errors import InputError, RunError, one_line
from gpc.installation import install
from gpc.registry import USER_FOLDERS
from gpc.rollout.engine import Actor, Engine, Episode, Job, LaneSpec, RolloutStats, rollout
from gpc.rollout.process import search_path


class Executor(Protocol):
    """Runs jobs and yields each episode as it finishes, in any order."""

    def __call__(
        self, jobs: Sequence[Job], actor: Actor, spec: LaneSpec, engine: Engine, stats: RolloutStats
    ) -> Iterator[Episode]:
        """Yield the episode of every job once."""


@dataclass(frozen=True)
class Local:
    """Runs jobs on this machine."""

    def __call__(
        self, jobs: Sequence[Job], actor: Actor, spec: LaneSpec, engine: Engine, stats: RolloutStats
    ) -> Iterator[Episode]:
        """Run jobs in this process's engine."""
        return rollout(jobs, actor, spec, engine, stats)


@dataclass(frozen=True)
class Ray:
    """Runs jobs on a Ray cluster (docs.ray.io).

    If an actor dies with its node, its shard runs again, at most `engine.retries` times, and another actor replaces it
    if the cluster has room; `stats` counts the failure. Every node needs gpc; policies are sent with the jobs.

    Attributes:
        address: address of the cluster; None starts one on this machine.
        actors: number of actors, each with an engine; None for as many as the cluster has room for.
        cpus: cores of an actor.
        gpus: GPUs of an actor: 0, a fraction of one, or a whole number.
        shard: jobs that an actor takes at once.

    Raises:
        InputError: If no cluster answers, or none of its nodes has room for an actor.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int = 2
    gpus: float = 0
    shard: int = 64

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.shard < 1 or (self.actors is not None and self.actors < 1):
            raise InputError(f"executor: actors, cpus and shard must be 1 or more: {self}")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise InputError(f"executor.gpus={self.gpus:g}: give 0, a fraction of one GPU, or a whole number")

    def __call__(
        self, jobs: Sequence[Job], actor: Actor, spec: LaneSpec, engine: Engine, stats: RolloutStats
    ) -> Iterator[Episode]:
        """Run jobs in shards on the cluster's actors."""
        if not jobs:
            return
        ray = self._connect()
        hire = self._runners(ray, (actor, spec, engine))
        shards = deque(tuple(jobs[i : i + self.shard]) for i in range(0, len(jobs), self.shard))
        working: dict[Any, tuple[Any, tuple[Job, ...]]] = {}
        deaths: Counter[tuple[Job, ...]] = Counter()

        def assign(runner: Any) -> None:
            shard = shards.popleft()
            working[runner.run.remote(shard)] = runner, shard

        def staff() -> None:
            for _ in range(min(self._room(ray) - len(working), len(shards))):
                assign(hire())

        try:
            staff()
            while working:
                (answer,), _ = ray.wait(list(working), num_returns=1)
                runner, shard = working.pop(answer)
                result = _result(ray, answer)
                if isinstance(result, str):
                    deaths[shard] += 1
                    if deaths[shard] > engine.retries:
                        raise RunError(f"gave up on a shard after {engine.retries} retries: {result}")
                    stats.simulator_failures.append(f"an actor of the Ray cluster died: {result}")
                    shards.appendleft(shard)
                    staff()
                    continue
                episodes, shard_stats = result
                stats.add(shard_stats)
                if shards:
                    assign(runner)
                else:
                    ray.kill(runner)  # its cores are for the actor that replaces a dead one
                yield from episodes
        finally:
            for runner, _ in working.values():
                ray.kill(runner)

    def _runners(self, ray: ModuleType, load: tuple[Actor, LaneSpec, Engine]) -> Callable[[], Any]:
        """Return the function that starts an actor of the cluster."""
        # each member has one thread: more threads of a network would change its rounding
        threads = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        runner = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, runtime_env=threads)(_Runner)
        actor, spec, engine = load
        return partial(runner.remote, ray.put((actor, spec, replace(engine, workers=engine.workers or self.cpus))))

    def _connect(self) -> ModuleType:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise InputError(f"executor=ray needs Ray: {install('ray')}") from None
        if not ray.is_initialized():
            try:
                _knock(self.address or "local")
                with TemporaryDirectory() as empty:  # else Ray's workers import from this process's current folder
                    ray.init(
                        self.address or "local",
                        log_to_driver=False,
                        include_dashboard=None if self.address else False,
                        runtime_env={"working_dir": empty, "env_vars": _script_path()},
                    )
            except (OSError, ValueError) as error:
                raise InputError(
                    f"executor.address={self.address}: no Ray cluster answers ({one_line(error)})"
                ) from None
        return ray

    def _room(self, ray: ModuleType) -> int:
        """Return how many actors the cluster's nodes hold at once, at most `actors`."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores, cards = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
        room = sum(min(a // self.cpus, self._on_cards(b)) for a, b in zip(cores, cards, strict=True))
        if not room and any(count >= self.cpus for count in cores):
            raise InputError(f"executor.gpus={self.gpus:g}: the Ray cluster's nodes have {cards} GPUs; choose fewer")
        if not room:
            raise InputError(f"executor.cpus={self.cpus}: the Ray cluster's nodes have {cores} cores; choose fewer")
        return min(room, self.actors or room)

    def _on_cards(self, count: int) -> int:
        """Return how many actors this many GPUs hold; a fraction is of one GPU."""
        if not self.gpus:
            return sys.maxsize
        return count * int(1 / self.gpus + 1e-9) if self.gpus < 1 else count // int(self.gpus)


class _Runner:
    """The policies and the engine of an actor, loaded once."""

    def __init__(self, load: tuple[Actor, LaneSpec, Engine]) -> None:
        self.actor, self.spec, self.engine = load

    def run(self, jobs: Sequence[Job]) -> tuple[list[Episode], RolloutStats]:
        """Return the episodes of a shard, and the statistics of its engine."""
        stats = RolloutStats()
        return list(rollout(jobs, self.actor, self.spec, self.engine, stats)), stats


def _result(ray: ModuleType, answer: Any) -> tuple[list[Episode], RolloutStats] | str:
    """Return what an actor computed, or why it died."""
    try:
        result: tuple[list[Episode], RolloutStats] = ray.get(answer)
        return result
    except ray.exceptions.RayActorError as error:
        if error.actor_init_failed:
            cause = str(error).strip().splitlines()[-1]  # of the traceback on the node
            raise RunError(f"an actor of the Ray cluster cannot load the policies: {cause}") from None
        return one_line(error)
    except ray.exceptions.RayTaskError as error:
        raise RunError(one_line(error.cause)) from None


def _knock(address: str) -> None:
    """Connect to HOST:PORT, since ray.init would wait for minutes; raises OSError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _script_path() -> dict[str, str]:
    """Return a PYTHONPATH with the folders of the script and of named modules."""
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    folders = [folder for folder in search_path() if folder in {script, *USER_FOLDERS}]
    return {"PYTHONPATH": os.pathsep.join([*folders, "${PYTHONPATH}"])} if folders else {}
