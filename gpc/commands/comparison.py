"""`compare`: two policies, or two weightings, on the same seeds with the same noise, until the answer is known.

After each block of seeds the anytime-valid test of `gpc.results.sequential` is applied to the pairs so far. It depends on the
rows of complete blocks in the order of their seeds, not on the order in which episodes finish: a run that was killed stops at
the same episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpc.commands.api import Env, check_logged, console_for, in_folder, rows_in, seed_range
from gpc.commands.checks import weightings_of
from gpc.commands.config import Config
from gpc.commands.experiment import Experiment, experiment_of, logged, write_outputs, write_summary
from gpc.commands.keywords import with_hints
from gpc.commands.rollout_setup import composition_in, prepare, weights_in, with_members
from gpc.commands.setup import (
    device_under,
    devices_of,
    executor_of,
    load_policies,
    print_execution,
    print_notes,
    run_dir_of,
    sampler_named,
    sampling_of,
    spec_of,
    warnings_of,
)
from gpc.commands.simulators import common_simulator, env_of
from gpc.composition.composed import Composition, as_composition, leaves
from gpc.errors import InputError
from gpc.inert import Console, short
from gpc.inference.device import Device, DeviceLike, as_device
from gpc.inference.native import Native
from gpc.inference.settings import Sampling
from gpc.policy.adapt import distinct
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import as_policy
from gpc.policy.spec import Policy
from gpc.results.devices import device_text
from gpc.results.result import RunResult
from gpc.results.run_folder import Row, RunFolder
from gpc.results.stats import Interval
from gpc.results.summary import mixture, reported, summarize_comparison
from gpc.results.tracking import RunLog
from gpc.rollout.engine import Engine, Job
from gpc.rollout.executors import Executor, Local
from gpc.schema import Count, check
from gpc.types import DEVICE_KEYS
from gpc.weights.simplex import Weights


@dataclass(frozen=True, repr=False)
class Comparison(RunResult):
    """Result of `compare`: summary (docs/summary-schema.md), rows, shortcuts.

    Rates are fractions in [0, 1].
    """

    def __repr__(self) -> str:
        first, second = self.summary["sides"]
        sides = " against ".join(f"{short(side['name'], 24)} {side['pc_success']:.1f} %" for side in (first, second))
        if not reported(first):
            sides = " against ".join(
                f"{short(side['name'], 24)} {side['avg_max_reward']:.3f}" for side in (first, second)
            )
        low, high = self.summary["pc_success_gain_ci95"]
        gain = f"{self.summary['pc_success_gain']:+.1f} [{low:+.1f}, {high:+.1f}]"
        return f"Comparison({sides}, {gain}, {self.summary['n_episodes']} pairs)"

    @property
    def better(self) -> str | None:
        """Name of the side that is shown to succeed more often; None if neither is."""
        name: str | None = self.summary["better"]
        return name

    @property
    def success(self) -> tuple[float, float]:
        """Both sides' fractions of successful episodes."""
        first, second = (float(side["pc_success"]) / 100 for side in self.summary["sides"])
        return first, second

    @property
    def difference(self) -> float:
        """The first side's success minus the second's."""
        return float(self.summary["pc_success_gain"]) / 100

    @property
    def difference_ci95(self) -> Interval:
        """The 95 % interval of `difference`, valid whenever the comparison stopped."""
        low, high = self.summary["pc_success_gain_ci95"]
        return low / 100, high / 100


@dataclass(frozen=True)
class Side:
    """One side of a comparison: policies that act together, under these weights."""

    experiment: Experiment
    weights: Weights

    def __post_init__(self) -> None:
        self.experiment.setup.check(self.weights)

    @property
    def name(self) -> str:
        """The policy that has all the weight, or all names and the weights."""
        names = self.experiment.setup.names
        acting = [name for name, weight in zip(names, self.weights, strict=True) if weight]
        return acting[0] if len(acting) == 1 else f"{' + '.join(names)} {mixture(self.weights)}"

    @property
    def device(self) -> str:
        """Where it computes, as text."""
        return device_text(self.experiment.setup.settings)


def names_of(sides: Sequence[Side]) -> list[str]:
    """Return the names of the sides, with their devices if these differ."""
    differ = len({side.device for side in sides}) > 1
    return [f"{side.name} on {side.device}" if differ else side.name for side in sides]


@with_hints
def compare(
    a: Policy | str,
    b: Policy | str,
    env: Env = "policy",
    *,
    episodes: int = 500,
    block: int = 32,
    seed: int = 300_000,
    sampler: Sampling | str = Sampling(),
    engine: Engine = Engine(),
    executor: Executor = Local(),
    device: DeviceLike | tuple[DeviceLike, DeviceLike] = "auto",
    run_dir: str | Path | None = None,
    video: int = 2,
    log: str | None = None,
    verbose: bool = True,
) -> Comparison:
    """Roll out two policies on the same seeds until the better one is known.

    Args:
        a: policy, its name, or what `gpc.compose` returns.
        b: the other side, likewise.
        env: environment, as for `evaluate`.
        episodes: largest number of episodes of each side.
        block: episodes of each side between two tests.
        seed: first seed; neither that of a search nor of a report.
        sampler: settings of the sampler, or a name, as for `evaluate`.
        engine: number of lanes and simulator processes; it changes no result.
        executor: this machine, or a Ray cluster; it changes no result.
        device: where the networks compute, as for `evaluate`; a tuple of two has one for each side.
        run_dir: run folder, as for `evaluate`.
        video: number of seeds in the video of `run_dir`; 0: none.
        log: where the run is followed, as for `evaluate`.
        verbose: whether progress and notes are shown.

    Raises:
        InputError: If policies, environment and settings do not fit, before anything runs.
    """
    seeds, requested = seed_range(episodes, seed), spec_of(env)
    check(Count, block, "block")
    check_logged(log, run_dir)
    compositions = _named_apart([as_composition(as_policy(policy)) for policy in (a, b)])
    members = [member for composition in compositions for member in composition.policies]
    spec, origin = common_simulator(members, requested)
    devices = device if isinstance(device, tuple) else (device, device)
    if len(devices) != 2:
        raise InputError(f"device={device}: give one for both sides, or a tuple of two")
    sides, sampling, console = list[Side](), sampler_named(sampler), console_for(verbose)
    for composition, each in zip(compositions, devices, strict=True):
        opponents = [member for member in members if all(member is not p for p in composition.policies)]
        where, drawn = device_under(executor, as_device(each)), 0 if run_dir is None else video
        adapted = composition_in(composition, spec.rename_map)
        setup = prepare(adapted, spec, sampling, opponents, drawn, origin, where)
        sides.append(Side(Experiment(setup, engine, executor, console), weights_in(composition)))
    print_both(requested, sampling, sides, console)

    def run(folder: Path) -> Comparison:
        return Comparison(run_comparison(sides, seeds, block, folder), rows_in(folder), folder)

    experiments = [side.experiment for side in sides]
    return in_folder(run_dir, experiments, video, RunLog(log, names_of(sides)), run)


def _named_apart(compositions: Sequence[Composition]) -> list[Composition]:
    """Return the sides under names that differ; a policy of both has one name."""
    members = {_identity(member): member for composition in compositions for member in composition.policies}
    named = dict(zip(members, distinct(list(members.values())), strict=True))
    return [with_members(side, [named[_identity(member)] for member in side.policies]) for side in compositions]


def _identity(policy: Policy) -> tuple[object, ...]:
    """Return what two views of one policy share if they are the same view."""
    return policy.name, policy.fingerprint, *map(id, leaves(policy))


def compare_from(config: Config, console: Console) -> Path:
    """Run `gpc compare` and return the run folder."""
    devices = [device_under(executor_of(config), device) for device in devices_of(config)]
    sides = sides_of(config, load_policies(config), devices, console)
    experiment, seed = sides[0].experiment, config["seed"]
    print_both(env_of(config), sampling_of(config), sides, console)
    settings = _settings(sides) | {"block": config["block"], "seed": seed}
    folder = run_dir_of(config, "compare", experiment.setup.env.name, names_of(sides), settings)
    with logged([side.experiment for side in sides], RunLog(config["log"], names_of(sides))):
        run_comparison(sides, range(seed, seed + config["episodes"]), config["block"], folder)
        write_outputs(experiment, folder, config["video"])
    return folder


def print_both(requested: EnvSpec, sampler: Sampling | Native, sides: Sequence[Side], console: Console) -> None:
    """Print what both sides leave open, and their warnings and notes."""
    first, second = (side.experiment.setup for side in sides)
    acting = [side.experiment.setup.policy.with_weights(torch.tensor(side.weights).double()) for side in sides]
    print_notes(dict.fromkeys(note for policy in acting for note in warnings_of(policy)), console)
    print_execution(requested, sampler, first, console, second.policy.policies)
    print_notes([note for note in second.notes if note not in first.notes], console)


def sides_of(config: Config, policies: Sequence[Policy], devices: Sequence[Device], console: Console) -> list[Side]:
    """Return two policies, two weightings of all policies, or two devices, as sides.

    Raises:
        InputError: If the configuration has none of these.
    """
    weightings = weightings_of(config, len(policies))
    if weightings is None:
        sides = zip(policies, reversed(policies), devices, strict=True)
        return [Side(experiment_of(config, console, [one], [other], device), (1.0,)) for one, other, device in sides]
    first = experiment_of(config, console, policies, device=devices[0])
    second = first if devices[0] == devices[1] else experiment_of(config, console, policies, device=devices[1])
    return [Side(experiment, weights) for experiment, weights in zip((first, second), weightings, strict=True)]


def run_comparison(sides: Sequence[Side], seeds: range, block: int, path: Path) -> dict[str, Any]:
    """Roll out blocks of pairs until the test decides; return the summary."""
    names = names_of(sides)
    experiments = list(dict.fromkeys(side.experiment for side in sides))
    for experiment in experiments:
        experiment.warn_reused_seeds(path.parent, seeds)
    title, summary = "compare", dict[str, Any]()
    with experiments[0].open(path, _settings(sides) | {"block": block, "seed": seeds.start}) as folder:
        for count in (*range(block, len(seeds), block), len(seeds)):
            rows = _roll(sides, folder, seeds[:count], title)
            errors = sum(len(experiment.stats.simulator_failures) for experiment in experiments)
            summary = summarize_comparison(names, rows, len(seeds), errors)
            title = _running(summary)
            if summary["better"]:
                break
        write_summary(folder, summary, experiments)
    return summary


def _roll(sides: Sequence[Side], folder: RunFolder, seeds: range, title: str) -> list[list[Row]]:
    """Return the rows of both sides; sides of one experiment share its batches."""
    for experiment in dict.fromkeys(side.experiment for side in sides):
        acting = [(k, side.weights) for k, side in enumerate(sides) if side.experiment is experiment]
        experiment.roll(folder, "compare", [Job(k, weights, seed) for k, weights in acting for seed in seeds], title)
    return [[folder.rows["compare", k, seed] for seed in seeds] for k in range(len(sides))]


def _settings(sides: Sequence[Side]) -> dict[str, Any]:
    """Return what determines results, without the number of episodes.

    A comparison can resume with more episodes.

    Raises:
        InputError: If both sides are the same.
    """
    first, second = (side.experiment.setup.settings for side in sides)
    entries = [
        {"policies": settings["policies"], "weights": list(side.weights)}
        | {key: settings.pop(key) for key in ("composer", *DEVICE_KEYS)}
        for settings, side in zip((first, second), sides, strict=True)
    ]
    if entries[0] == entries[1]:
        raise InputError(
            f"both sides are {sides[0].name} on {sides[0].device}; compare two policies, lists of weights or devices that differ"
        )
    names = list(dict.fromkeys([*first["policies"], *second["policies"]]))
    return first | {"policies": names, "fingerprints": first["fingerprints"] | second["fingerprints"], "sides": entries}


def _running(summary: Mapping[str, Any]) -> str:
    """Return the figures so far, for the progress bar."""
    first, second = (f"{side['pc_success']:.1f}" for side in summary["sides"])
    low, high = summary["pc_success_gain_ci95"]
    gain = f"{summary['pc_success_gain']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{summary['n_episodes']} pairs: {first} % against {second} %, {gain}"
