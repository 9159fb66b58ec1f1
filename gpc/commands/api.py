"""The commands from Python: `gpc.evaluate` and `gpc.search` on policies that are loaded already."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gpc.commands.config import load_config
from gpc.commands.experiment import COMMANDS, Experiment
from gpc.composition.average import AveragedChunks
from gpc.composition.composed import ComposedPolicy
from gpc.composition.composers import Convex, Guidance
from gpc.composition.superposition import And, Or
from gpc.errors import InputError
from gpc.inert import Console
from gpc.policy.spec import Policy
from gpc.results.run_folder import Row, read_rows
from gpc.rollout.engine import RolloutStats
from gpc.weights.simplex import Weights


@dataclass(frozen=True)
class Result:
    """What `evaluate` and `search` return: the summary (docs/summary-schema.md), every row, and handy names."""

    summary: Mapping[str, Any]
    rows: tuple[Row, ...]
    stats: RolloutStats

    @property
    def winner(self) -> Mapping[str, Any]:
        """The figures of the evaluated policy, or of a search's winner on report seeds."""
        found: Mapping[str, Any] = self.summary.get("winner", self.summary)
        return found

    @property
    def weights(self) -> Weights:
        """The weights of `winner`."""
        return tuple(self.winner["weights"])

    @property
    def success(self) -> float:
        """Fraction of successful episodes."""
        return float(self.winner["pc_success"]) / 100

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
    env: str = "pusht",
    *,
    episodes: int = 50,
    overrides: Sequence[str] = (),
    run_dir: str | None = None,
) -> Result:
    """Roll out one policy, or a composition (`compose`, `AveragedChunks`).

    `overrides` are further keys as on the command line ("sampler.steps=16"); without `run_dir` nothing is kept.
    Raises InputError before anything runs where something does not fit.
    """
    policies, weights, composer = taken_apart(policy)
    shown = [f"env={env}", f"episodes={episodes}", *composer, f"weights={list(weights)}", "video=0", *overrides]
    return _quietly("evaluate", policies, shown, run_dir)


def taken_apart(policy: Policy) -> tuple[Sequence[Policy], Weights, list[str]]:
    """The members, weights and composer (as keys) of a composition; a policy that is none is its own only member."""
    if isinstance(policy, AveragedChunks):
        return policy.policies, tuple(policy.weights.tolist()), ["composer=average"]
    if not isinstance(policy, ComposedPolicy):
        return (policy,), (1.0,), ["composer=convex"]
    match policy.composer:
        case Convex(weights=weights):
            keys = ["composer=convex"]
        case Guidance(weights=weights):
            keys = ["composer=guidance"]
        case Or(weights=weights, temperature=temperature):
            keys = ["composer=or", f"composer.temperature={temperature}"]
        case And(weights=weights):
            keys = ["composer=and"]
        case other:
            raise InputError(f"{type(other).__name__} is none of gpc's composers, which are what can be rolled out")
    if weights.ndim != 1:
        raise InputError("a composition to roll out has one weight for each policy, not one for each row of a batch")
    return policy.policies, tuple(weights.tolist()), keys


def search(
    policies: Sequence[Policy],
    env: str = "pusht",
    *,
    method: str = "racing",
    budget: int | None = None,
    episodes: int | None = None,
    demonstrations: str | None = None,
    report_episodes: int = 50,
    overrides: Sequence[str] = (),
    run_dir: str | None = None,
) -> Result:
    """Find the weights on search seeds, then compare winner and parents on report seeds; see `evaluate`.

    `budget` counts the episodes of the whole search, `episodes` those of each candidate; `gpc search -h` says which methods have
    which. `demonstrations` is a file of held-out ones, for method "demos" or as the start of the others.
    """
    asked = {"budget": budget, "episodes": episodes}
    shown = [f"env={env}", f"search={method}", f"report.episodes={report_episodes}", "video=0"]
    shown += [f"search.{key}={value}" for key, value in asked.items() if value is not None]
    shown += [f'demonstrations="{demonstrations}"'] if demonstrations else []
    return _quietly("search", policies, [*shown, *overrides], run_dir)


def _quietly(kind: str, policies: Sequence[Policy], overrides: Sequence[str], run_dir: str | None) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(run_dir or f"{scratch}/run")
        config = configured(kind, policies, overrides)
        experiment = Experiment(config, policies, Console(quiet=True))
        summary = COMMANDS[kind](experiment, folder)
        return Result(summary, tuple(sorted(read_rows(folder / "episodes.jsonl"))), experiment.stats)


def configured(kind: str, policies: Sequence[Policy], overrides: Sequence[str]) -> DictConfig:
    """The configuration of policies that are loaded already."""
    names = ",".join(f'"{policy.name}"' for policy in policies)
    return load_config(kind, [f"policies=[{names}]", *overrides])
