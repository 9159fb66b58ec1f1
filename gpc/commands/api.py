"""The commands as functions of objects: `gpc.evaluate` and `gpc.search`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from weakref import finalize

import gymnasium

from gpc.commands.checks import REPORT_SEED, check_log, first_seed
from gpc.commands.experiment import Experiment, logged, run_evaluation, run_search, write_outputs
from gpc.commands.keywords import with_hints
from gpc.commands.progress import in_notebook
from gpc.commands.rollout_setup import composition_in, prepare, weights_in
from gpc.commands.setup import device_under, print_execution, sampler_named, search_named, spec_of
from gpc.commands.simulators import common_simulator
from gpc.composition.composed import Composition, as_composition, compose
from gpc.errors import InputError
from gpc.inert import Console, short
from gpc.inference.device import DeviceLike, as_device
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import as_policy
from gpc.policy.spec import Policy
from gpc.results.result import RunResult
from gpc.results.run_folder import Row, read_rows
from gpc.results.summary import mixture, percent, reported
from gpc.results.tracking import RunLog
from gpc.rollout.engine import Engine, RolloutStats
from gpc.rollout.executors import Executor, Local
from gpc.schema import Count, Seed, check
from gpc.weights.searches import Racing, Search
from gpc.weights.simplex import Weights

Env = str | EnvSpec | gymnasium.Env[Any, Any] | Callable[..., Any]
"""An environment: a name, a spec, an environment, or what makes one; see `gpc.commands.setup.spec_of`."""


@dataclass(frozen=True, repr=False)
class Result(RunResult):
    """Result of `evaluate` and `search`: summary, rows, shortcuts."""

    stats: RolloutStats

    def __repr__(self) -> str:
        figures, names = self.winner, short(" + ".join(self.summary["policies"]), 40)
        success = f"{percent(figures)} success" if reported(figures) else f"score {self.score:.3f}"
        which = "winner " if self.summary["kind"] == "search" else ""
        return (
            f"Result({names}: {which}{short(mixture(self.weights), 24)}, {success}, {figures['n_episodes']} episodes)"
        )

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


@with_hints
def evaluate(
    policy: Policy | str,
    env: Env = "policy",
    *,
    episodes: int = 50,
    seed: int | None = None,
    sampler: Sampling | str = Sampling(),
    engine: Engine = Engine(),
    executor: Executor = Local(),
    device: DeviceLike = "auto",
    run_dir: str | Path | None = None,
    video: int = 2,
    log: str | None = None,
    verbose: bool = True,
) -> Result:
    """Roll out a policy or a composition.

    Args:
        policy: policy, its name as for `gpc.load_policy`, or what `gpc.compose` returns.
        env: name as for `env=`, spec, `gymnasium.Env`, or a class or function that makes one (docs/environments.md); by
            default what the policy was trained for.
        episodes: number of episodes, on seeds `seed`, `seed + 1`, ...
        seed: first seed, of the environment and of the policy's noise; by default that of `run_dir`, or 200000, as a
            search's report.
        sampler: settings, or a name as for `sampler=`: "ancestral", or "native", which is the policies' checkpoints' own.
        engine: number of lanes and simulator processes; it changes no result.
        executor: this machine, or a Ray cluster; it changes no result.
        device: where the networks compute: a name, as "cuda:1", names by policy, or a `gpc.Device` (docs/gpu.md).
        run_dir: run folder, with the command line's files, in which an interrupted run resumes; by default nothing is kept.
        video: number of episodes in the video of `run_dir`; 0: none.
        log: "wandb", "trackio" or "tensorboard", where the run is followed beside `run_dir` (docs/reports.md).
        verbose: whether progress and notes are shown, on stderr or in the notebook.

    Raises:
        InputError: If policy, environment and settings do not fit, before anything runs.
    """
    seeds = seed_range(episodes, first_seed(seed, run_dir))
    check_logged(log, run_dir)
    composition = as_composition(as_policy(policy))
    experiment = experiment_in(
        composition, env, sampler, engine, executor, device, 0 if run_dir is None else video, verbose
    )
    weights = weights_in(experiment.setup.policy)

    def run(folder: Path) -> Result:
        summary = run_evaluation(experiment, weights, seeds, folder)
        return Result(summary, rows_in(folder), folder, experiment.stats)

    return in_folder(run_dir, [experiment], video, RunLog(log), run)


@with_hints
def search(
    policies: Sequence[Policy | str] | Composition,
    env: Env = "policy",
    *,
    search: Search | str = Racing(),
    demonstrations: str | Path | None = None,
    report_episodes: int = 50,
    report_seed: int = REPORT_SEED,
    sampler: Sampling | str = Sampling(),
    engine: Engine = Engine(),
    executor: Executor = Local(),
    device: DeviceLike = "auto",
    run_dir: str | Path | None = None,
    video: int = 2,
    log: str | None = None,
    verbose: bool = True,
) -> Result:
    """Find the weights of policies, then compare winner and parents on report seeds.

    Args:
        policies: two policies or more, or their names, or a composition, the weights of which the search replaces.
        env: environment, as for `evaluate`.
        search: search, as `Racing(budget=440)`, `Grid(episodes=20)`, a name as for `search=`, or an object of your own
            (`gpc.weights.searches.Search`).
        demonstrations: file of held-out demonstrations (docs/demonstrations.md), which start the search.
        report_episodes: number of report seeds.
        report_seed: first report seed; report seeds never overlap the search seeds.
        sampler: settings, or a name as for `sampler=`: "ancestral", or "native", which is the policies' checkpoints' own.
        engine: number of lanes and simulator processes; it changes no result.
        executor: this machine, or a Ray cluster; it changes no result.
        device: where the networks compute, as for `evaluate`.
        run_dir: run folder, with the command line's files, in which an interrupted run resumes; by default nothing is kept.
        video: number of episodes in the video of `run_dir`; 0: none.
        log: "wandb", "trackio" or "tensorboard", where the run is followed beside `run_dir` (docs/reports.md).
        verbose: whether progress and notes are shown, on stderr or in the notebook.

    Raises:
        InputError: If policies, environment and settings do not fit, before anything runs.
    """
    report = seed_range(report_episodes, report_seed, "report_")
    method = search_named(search)
    check_logged(log, run_dir)
    composition = policies if isinstance(policies, Composition) else compose(policies)
    experiment = experiment_in(
        composition, env, sampler, engine, executor, device, 0 if run_dir is None else video, verbose
    )

    def run(folder: Path) -> Result:
        summary = run_search(experiment, method, report, folder, demonstrations)
        return Result(summary, rows_in(folder), folder, experiment.stats)

    return in_folder(run_dir, [experiment], video, RunLog(log), run)


def experiment_in(
    composition: Composition,
    env: Env,
    sampler: Sampling | str,
    engine: Engine,
    executor: Executor,
    device: DeviceLike,
    video: int,
    verbose: bool,
) -> Experiment:
    """Return the experiment of a composition, checked; print what it leaves open."""
    where, requested, sampling = device_under(executor, as_device(device)), spec_of(env), sampler_named(sampler)
    spec, origin = common_simulator(composition.policies, requested)
    adapted = composition_in(composition, spec.rename_map)
    setup = prepare(adapted, spec, sampling, video=video, origin=origin, device=where)
    experiment = Experiment(setup, engine, executor, console_for(verbose))
    print_execution(requested, sampling, setup, experiment.console)
    return experiment


def console_for(verbose: bool) -> Console:
    """Return where progress and notes are shown; a notebook shows stderr in red."""
    return Console(stderr=not in_notebook(), force_jupyter=False, quiet=not verbose)


def seed_range(episodes: int, seed: int, prefix: str = "") -> range:
    """Return checked seeds; `prefix` begins the names of the arguments."""
    check(Count, episodes, f"{prefix}episodes")
    check(Seed, seed, f"{prefix}seed")
    return range(seed, seed + episodes)


def check_logged(log: str | None, run_dir: str | Path | None) -> None:
    """Check `log`, and that there is a run folder, of which it takes the figures."""
    check_log(log)
    if log and run_dir is None:
        raise InputError(f"log={log!r} takes the figures of a run folder; give run_dir, too")


R = TypeVar("R", bound=RunResult)
S = TypeVar("S")


def in_folder(
    run_dir: str | Path | None, experiments: Sequence[Experiment], video: int, log: RunLog, run: Callable[[Path], R]
) -> R:
    """Return the result of a run, with video and page in `run_dir`.

    Without one the run folder is a temporary one, which is deleted with the result.
    """
    if run_dir is not None:
        folder = Path(run_dir).expanduser()
        with logged(experiments, log):
            result = run(folder)
            write_outputs(experiments[0], folder, video)
        return result
    return in_scratch(run)


def in_scratch(run: Callable[[Path], S]) -> S:
    """Return the result of a run in a folder that is deleted with the result."""
    with ExitStack() as stack:
        result = run(Path(stack.enter_context(TemporaryDirectory(prefix="gpc-")), "run"))
        finalize(result, stack.pop_all().close)
    return result


def rows_in(folder: Path) -> tuple[Row, ...]:
    """Return the sorted rows of a run folder."""
    return tuple(sorted(read_rows(folder / "episodes.jsonl")))
