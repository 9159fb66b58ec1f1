"""The commands as functions of objects: `gpc.evaluate` and `gpc.search`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium

from gpc.commands.checks import REPORT_SEED, first_seed
from gpc.commands.experiment import Experiment, run_evaluation, run_search
from gpc.commands.rollout_setup import composition_in, prepare, weights_in
from gpc.commands.setup import device_under, spec_of
from gpc.commands.simulators import common_simulator
from gpc.composition.composed import Composition, as_composition, compose
from gpc.inert import Console
from gpc.inference.device import DeviceLike, as_device
from gpc.inference.native import Native
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import Policy
from gpc.results.run_folder import Row, read_rows
from gpc.results.summary import reported
from gpc.rollout.engine import Engine, RolloutStats
from gpc.rollout.executors import Executor, Local
from gpc.schema import Count, Seed, check
from gpc.weights.searches import Racing, Search
from gpc.weights.simplex import Weights

Env = str | EnvSpec | gymnasium.Env[Any, Any] | Callable[..., Any]
"""An environment: a name, a spec, an environment, or what makes one; see `gpc.commands.setup.spec_of`."""


@dataclass(frozen=True)
class Result:
    """Result of `evaluate` and `search`: summary, rows, shortcuts."""

    summary: Mapping[str, Any]
    rows: tuple[Row, ...]
    stats: RolloutStats

    @property
    def winner(self) -> Mapping[str, Any]:
        """The figures of the evaluated policy, or of a search's winner on report seeds."""
        figures: Mapping[str, Any] = self.summary.get("winner", self.summary)
        return figures

    @property
    def weights(self) -> Weights:
        """The weights of `winner`."""
        return tuple(self.winner["weights"])

    @property
    def success(self) -> float:
        """Fraction of successful episodes; NaN if the environment reports none."""
        return float(self.winner["pc_success"]) / 100 if reported(self.winner) else float("nan")

    @property
    def success_ci95(self) -> tuple[float, float]:
        """Wilson's 95 % interval of `success`."""
        low, high = self.winner["pc_success_ci95"]
        return low / 100, high / 100

    @property
    def score(self) -> float:
        """Mean of the episodes' largest rewards."""
        return float(self.winner["avg_max_reward"])

    @property
    def score_ci95(self) -> tuple[float, float]:
        """95 % interval of `score`."""
        low, high = self.winner["avg_max_reward_ci95"]
        return low, high


def evaluate(
    policy: Policy,
    env: Env = "policy",
    *,
    episodes: int = 50,
    seed: int | None = None,
    sampling: Sampling | Native = Sampling(),
    engine: Engine = Engine(),
    executor: Executor = Local(),
    device: DeviceLike = "auto",
    run_dir: str | Path | None = None,
) -> Result:
    """Roll out a policy or a composition.

    Args:
        policy: policy, or what `gpc.compose` returns.
        env: name as for `env=`, spec, `gymnasium.Env`, or a class or function that makes one (docs/environments.md); by
            default what the policy was trained for.
        episodes: number of episodes, on seeds `seed`, `seed + 1`, ...
        seed: first seed, of the environment and of the policy's noise; by default that of `run_dir`, or 200000, as a
            search's report.
        sampling: settings of the sampler; "native" for those of the policies' checkpoints (docs/checkpoints.md).
        engine: number of lanes and simulator processes; it changes no result.
        executor: this machine, or a Ray cluster; it changes no result.
        device: where the networks compute: a name, as "cuda:1", names by policy, or a `gpc.Device` (docs/gpu.md).
        run_dir: run folder, in which an interrupted run resumes; by default nothing is kept.

    Raises:
        InputError: If policy, environment and settings do not fit, before anything runs.
    """
    seeds = seed_range(episodes, first_seed(seed, run_dir))
    where = device_under(executor, as_device(device))
    spec, origin = common_simulator(as_composition(policy).policies, spec_of(env))
    composition = composition_in(policy, spec.rename_map)
    weights = weights_in(composition)
    setup = prepare(composition, spec, sampling, origin=origin, device=where)
    experiment = Experiment(setup, engine, executor, Console(quiet=True))
    with run_folder(run_dir) as folder:
        summary = run_evaluation(experiment, weights, seeds, folder)
        return Result(summary, rows_in(folder), experiment.stats)


def search(
    policies: Sequence[Policy] | Composition,
    env: Env = "policy",
    *,
    method: Search = Racing(),
    demonstrations: str | Path | None = None,
    report_episodes: int = 50,
    report_seed: int = REPORT_SEED,
    sampling: Sampling | Native = Sampling(),
    engine: Engine = Engine(),
    executor: Executor = Local(),
    device: DeviceLike = "auto",
    run_dir: str | Path | None = None,
) -> Result:
    """Find the weights of policies, then compare winner and parents on report seeds.

    Args:
        policies: two policies or more, or a composition of them, the weights of which the search replaces.
        env: environment, as for `evaluate`.
        method: search, as `Racing(budget=440)`, `Grid(episodes=20)` or an object of your own
            (`gpc.weights.searches.Search`).
        demonstrations: file of held-out demonstrations (docs/demonstrations.md), which start the search.
        report_episodes: number of report seeds.
        report_seed: first report seed; report seeds never overlap the search seeds.
        sampling: settings of the sampler; "native" for those of the policies' checkpoints (docs/checkpoints.md).
        engine: number of lanes and simulator processes; it changes no result.
        executor: this machine, or a Ray cluster; it changes no result.
        device: where the networks compute, as for `evaluate`.
        run_dir: run folder, in which an interrupted run resumes; by default nothing is kept.

    Raises:
        InputError: If policies, environment and settings do not fit, before anything runs.
    """
    report = seed_range(report_episodes, report_seed, "report_")
    where = device_under(executor, as_device(device))
    composition = policies if isinstance(policies, Composition) else compose(policies)
    spec, origin = common_simulator(composition.policies, spec_of(env))
    composition = composition_in(composition, spec.rename_map)
    setup = prepare(composition, spec, sampling, origin=origin, device=where)
    experiment = Experiment(setup, engine, executor, Console(quiet=True))
    with run_folder(run_dir) as folder:
        summary = run_search(experiment, method, report, folder, demonstrations)
        return Result(summary, rows_in(folder), experiment.stats)


def seed_range(episodes: int, seed: int, prefix: str = "") -> range:
    """Return checked seeds; `prefix` begins the names of the arguments."""
    check(Count, episodes, f"{prefix}episodes")
    check(Seed, seed, f"{prefix}seed")
    return range(seed, seed + episodes)


@contextmanager
def run_folder(run_dir: str | Path | None) -> Iterator[Path]:
    """Yield the run folder, by default one that is deleted at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(run_dir or f"{scratch}/run")


def rows_in(folder: Path) -> tuple[Row, ...]:
    """Return the sorted rows of a run folder."""
    return tuple(sorted(read_rows(folder / "episodes.jsonl")))
