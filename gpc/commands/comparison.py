"""`compare`: two policies, or two weightings, on the same seeds with the same noise, until the answer is known.

After every block of seeds the anytime-valid test of `gpc.results.sequential` looks at the pairs so far. It depends on the rows of
whole blocks in the order of their seeds, not on who finished first: a run that was killed stops at the same episode.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gpc.commands.api import configured, taken_apart
from gpc.commands.experiment import Experiment, finish
from gpc.commands.setup import folder_of, loaded, numbers
from gpc.errors import InputError
from gpc.inert import Console
from gpc.policy.spec import Policy
from gpc.results.run_folder import Row, RunFolder, read_rows
from gpc.results.stats import Interval
from gpc.results.summary import mixture, summarize_comparison
from gpc.rollout.engine import Job
from gpc.weights.simplex import Weights

WEIGHTINGS = "two lists of weights, as in 'weights=[[0.4,0.6],[0,1]]'"


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns: the summary (docs/summary-schema.md), every row, and handy names; fractions in [0, 1]."""

    summary: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def better(self) -> str | None:
        """The name of the side that is shown to succeed more often; None where the episodes did not tell."""
        found: str | None = self.summary["better"]
        return found

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
    """One of the two that are compared: policies that act together, under these weights."""

    experiment: Experiment
    weights: Weights

    def __post_init__(self) -> None:
        self.experiment.check(self.weights)

    @property
    def name(self) -> str:
        """The policy that has all the weight, or all names and the weights."""
        names = self.experiment.names
        acting = [name for name, weight in zip(names, self.weights, strict=True) if weight]
        return acting[0] if len(acting) == 1 else f"{' + '.join(names)} {mixture(self.weights)}"


def compare(
    a: Policy,
    b: Policy,
    env: str = "pusht",
    *,
    episodes: int = 500,
    overrides: Sequence[str] = (),
    run_dir: str | None = None,
) -> Comparison:
    """Roll out two policies, or compositions, on the same seeds until one is shown to succeed more often.

    `episodes` of each are the most; see `evaluate` for the rest.
    """
    shown = [f"env={env}", f"episodes={episodes}", "video=0", *overrides]
    parts = [taken_apart(policy) for policy in (a, b)]
    console, everyone = Console(quiet=True), [policy for members, _, _ in parts for policy in members]
    sides = []
    for members, weights, composer in parts:
        config = configured("compare", members, [*composer, *shown])
        sides.append(Side(Experiment(config, members, console, everyone), weights))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(run_dir or f"{scratch}/run")
        summary = run_comparison(sides, folder)
        return Comparison(summary, tuple(sorted(read_rows(folder / "episodes.jsonl"))))


def run(config: DictConfig, kind: str, console: Console) -> Path:
    """`gpc compare`: load, run, print, report. Returns the run folder."""
    sides = sides_of(config, loaded(config), console)
    experiment = sides[0].experiment
    folder = folder_of(config, kind, experiment.env.name, [side.name for side in sides])
    run_comparison(sides, folder)
    finish(experiment, folder)
    return folder


def sides_of(config: DictConfig, policies: Sequence[Policy], console: Console) -> list[Side]:
    """Two policies, or two weightings of all policies; InputError where the configuration has neither."""
    if config.weights is None:
        if len(policies) != 2:
            raise InputError(f"compare takes two policies, not {len(policies)}, or {WEIGHTINGS}")
        return [Side(Experiment(config, [policy], console, policies), (1.0,)) for policy in policies]
    if len(config.weights) != 2 or not all(OmegaConf.is_list(weights) for weights in config.weights):
        raise InputError(f"weights={config.weights}: compare takes {WEIGHTINGS}")
    experiment = Experiment(config, policies, console)
    return [Side(experiment, numbers(weights)) for weights in config.weights]


def run_comparison(sides: Sequence[Side], path: Path) -> Mapping[str, Any]:
    """Blocks of paired episodes until the test knows the better side, or there are `episodes` of each."""
    config = sides[0].experiment.config
    names = [side.name for side in sides]
    experiments = list(dict.fromkeys(side.experiment for side in sides))
    for experiment in experiments:
        experiment.warn_of_searched(path.parent, range(config.seed, config.seed + config.episodes))
    title = "compare"
    with experiments[0].open(path, _settings(sides)) as folder:
        for count in (*range(config.block, config.episodes, config.block), config.episodes):
            rows = _roll(sides, folder, range(config.seed, config.seed + count), title)
            errors = sum(len(experiment.stats.simulator_failures) for experiment in experiments)
            summary = summarize_comparison(names, rows, config.episodes, errors)
            title = _running(summary)
            if summary["better"]:
                break
        folder.write_json("summary.json", summary)
    return summary


def _roll(sides: Sequence[Side], folder: RunFolder, seeds: range, title: str) -> list[list[Row]]:
    """Both sides' rows on these seeds; sides of one experiment share its batches."""
    for experiment in dict.fromkeys(side.experiment for side in sides):
        own = [(k, side.weights) for k, side in enumerate(sides) if side.experiment is experiment]
        experiment.roll(folder, "compare", [Job(k, weights, seed) for k, weights in own for seed in seeds], title)
    return [[folder.rows["compare", k, seed] for seed in seeds] for k in range(len(sides))]


def _settings(sides: Sequence[Side]) -> dict[str, Any]:
    """What determines results; not how many episodes there may be, so that a comparison can go on.

    Raises InputError where both sides are the same.
    """
    first, second = (side.experiment.settings(("composer", "block", "seed")) for side in sides)
    shown = [
        {"policies": own["policies"], "composer": own.pop("composer"), "weights": list(side.weights)}
        for own, side in zip((first, second), sides, strict=True)
    ]
    if shown[0] == shown[1]:
        raise InputError(f"both sides are {sides[0].name}; compare two policies, or two lists of weights, that differ")
    names = list(dict.fromkeys([*first["policies"], *second["policies"]]))
    return first | {"policies": names, "fingerprints": first["fingerprints"] | second["fingerprints"], "sides": shown}


def _running(summary: Mapping[str, Any]) -> str:
    """The figures so far, for the progress bar."""
    first, second = (f"{side['pc_success']:.1f}" for side in summary["sides"])
    low, high = summary["pc_success_gain_ci95"]
    gain = f"{summary['pc_success_gain']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{summary['n_episodes']} pairs: {first} % against {second} %, {gain}"
