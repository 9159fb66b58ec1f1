"""Where episodes run: on this machine, or on a Ray cluster.

On a cluster jobs go out in shards to actors, each of which holds the policies and a rollout engine of its own. An episode
depends on (policies, weights, sampler, seed) alone, so a shard whose node died simply runs again elsewhere, and the episodes are
those of a local run.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Protocol

from gpc.errors import InputError, RunError, one_line
from gpc.rollout.engine import Actor, Engine, EnvSpec, Episode, Health, Job, rollout
from gpc.rollout.process import search_path


class Executor(Protocol):
    """Runs jobs and yields each episode as it finishes, in any order; see `gpc.rollout.engine.rollout`."""

    def __call__(
        self, jobs: Sequence[Job], actor: Actor, env: EnvSpec, engine: Engine, health: Health
    ) -> Iterator[Episode]:
        """Every job's episode, once."""


@dataclass(frozen=True)
class Local:
    """On this machine."""

    def __call__(
        self, jobs: Sequence[Job], actor: Actor, env: EnvSpec, engine: Engine, health: Health
    ) -> Iterator[Episode]:
        """See `Executor`."""
        return rollout(jobs, actor, env, engine, health)


@dataclass(frozen=True)
class Ray:
    """On a Ray cluster (docs.ray.io): that of `address`, or without one a cluster of this machine alone.

    `actors` work at once, each on `cpus` of a node's cores with an engine of its own (None: as many as the cluster has room
    for), and take `shard` jobs at a time. Where an actor dies with its node, its shard runs again, at most `engine.retries`
    times, and another actor takes its place where there is room; `health` counts it. Every node needs gpc; policies travel
    with the jobs.
    Raises InputError where no cluster answers or has room for an actor.
    """

    address: str | None = None
    actors: int | None = None
    cpus: int = 2
    shard: int = 64

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.shard < 1 or (self.actors is not None and self.actors < 1):
            raise InputError(f"executor: actors, cpus and shard must be 1 or more: {self}")

    def __call__(
        self, jobs: Sequence[Job], actor: Actor, env: EnvSpec, engine: Engine, health: Health
    ) -> Iterator[Episode]:
        """See `Executor`."""
        if not jobs:
            return
        ray = self._connect()
        # members get a thread each; a network's own threads would change its rounding
        threads = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        hire = ray.remote(num_cpus=self.cpus, runtime_env=threads)(_Runner).remote
        load = ray.put((actor, env, engine))
        shards = deque(tuple(jobs[i : i + self.shard]) for i in range(0, len(jobs), self.shard))
        working: dict[Any, tuple[Any, tuple[Job, ...]]] = {}
        deaths: Counter[tuple[Job, ...]] = Counter()

        def assign(runner: Any) -> None:
            shard = shards.popleft()
            working[runner.run.remote(shard)] = runner, shard

        def staff() -> None:
            for _ in range(min(self._room(ray) - len(working), len(shards))):
                assign(hire(load))

        try:
            staff()
            while working:
                (answer,), _ = ray.wait(list(working), num_returns=1)
                runner, shard = working.pop(answer)
                try:
                    episodes, own = ray.get(answer)
                except ray.exceptions.RayActorError as error:
                    if error.actor_init_failed:
                        cause = str(error).strip().splitlines()[-1]  # of the traceback on the node
                        raise RunError(f"an actor of the Ray cluster cannot load the policies: {cause}") from None
                    deaths[shard] += 1
                    if deaths[shard] > engine.retries:
                        raise RunError(
                            f"gave up on a shard after {engine.retries} retries: {one_line(error)}"
                        ) from None
                    health.breakdowns.append(f"an actor of the Ray cluster died: {one_line(error)}")
                    shards.appendleft(shard)
                    staff()
                    continue
                except ray.exceptions.RayTaskError as error:
                    raise RunError(one_line(error.cause)) from None
                health.add(own)
                if shards:
                    assign(runner)
                else:
                    ray.kill(runner)  # its cores are for the actor that replaces a dead one
                yield from episodes
        finally:
            for runner, _ in working.values():
                ray.kill(runner)

    def _connect(self) -> ModuleType:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise InputError("executor=ray needs Ray; pip install 'gpc[ray]'") from None
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
        """How many actors the cluster's nodes hold at once, at most `actors`."""
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        room = sum(count // self.cpus for count in cores)
        if not room:
            raise InputError(f"executor.cpus={self.cpus}: the Ray cluster's nodes have {cores} cores; choose fewer")
        return min(room, self.actors or room)


class _Runner:
    """An actor's side: policies and engine, loaded once."""

    def __init__(self, load: tuple[Actor, EnvSpec, Engine]) -> None:
        self.actor, self.env, self.engine = load

    def run(self, jobs: Sequence[Job]) -> tuple[list[Episode], Health]:
        """A shard's episodes, and what happened beside them."""
        health = Health()
        return list(rollout(jobs, self.actor, self.env, self.engine, health)), health


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: ray.init would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _script_path() -> dict[str, str]:
    """Ray's variables for the folder of this process's script, in front of the node's own PYTHONPATH."""
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    return {"PYTHONPATH": f"{script}{os.pathsep}${{PYTHONPATH}}"} if script in search_path() else {}
