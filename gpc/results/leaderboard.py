"""Finished runs as they lie on disk, and what several of them say together: leaderboard, outcomes, progress of a search.

Only the phases "report" and "evaluate" rank policies: their episodes were fixed beforehand. Search episodes chose the weights,
and `gpc compare` stops when it knows enough. An episode on a seed that any search of the study used on the task is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.results.run_folder import Manifest, Row, read_rows, read_versioned
from gpc.results.stats import Interval, mcnemar, paired_difference, wilson
from gpc.results.summary import Names, mixture, read_summary
from gpc.results.upgrade import upgraded
from gpc.schema import convert
from gpc.types import Array

RANKED = ("report", "evaluate")
ALPHA = 0.05
OUTCOMES = (
    "won by the mixture alone",
    "won by the mixture and some parents",
    "won by all",
    "lost by the mixture, won by some parents",
    "lost by the mixture alone",
    "lost by all",
)

Member = tuple[str, str, tuple[float, ...]]
"""A policy's name and fingerprint, and its weight in each part of the composer (`composers.HasWeights`)."""


@dataclass(frozen=True)
class Run:
    """A finished run folder; `rows` are in the order of the file, which is that in which the episodes finished."""

    path: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def resolved(self) -> Mapping[str, Any]:
        """The whole configuration; of a run that has none, what determined its results."""
        found: Mapping[str, Any] = self.manifest.get("resolved") or self.manifest["config"]
        return found

    @property
    def env(self) -> EnvSpec:
        """The environment; `n_action_steps`, which belongs to the policies, is None."""
        env = self.resolved["env"]
        return EnvSpec(env["type"], None, env["max_steps"], options=env.get("options") or {})

    @property
    def setting(self) -> str:
        """How the policies were sampled and executed: equal settings, weights and seeds are equal episodes."""
        return json.dumps([self.resolved["sampler"], self.resolved["env"]["n_action_steps"]], sort_keys=True)

    def members(self, row: Row) -> tuple[Member, ...]:
        """The policies that may have acted in an episode, in order, those without weight too."""
        names, prints = acting(self.manifest, row), self.manifest["config"]["fingerprints"]
        return tuple((name, prints[name], row.weights[k :: len(names)]) for k, name in enumerate(names))

    def under(self, phase: str, weights: Sequence[float]) -> dict[int, Row]:
        """A phase's rows under these weights, by seed."""
        return {row.seed: row for row in self.rows if row.phase == phase and row.weights == tuple(weights)}


def acting(manifest: Mapping[str, Any], row: Row) -> list[str]:
    """The names of the policies that a row's weights belong to: a comparison has two sides."""
    config = manifest["config"]
    found: list[str] = (config["sides"][row.candidate] if row.phase == "compare" else config)["policies"]
    return found


class EnvSettings(Struct):
    """What reports need of an environment's settings."""

    type: str
    n_action_steps: int | None
    max_steps: int
    options: dict[str, Any] | None = None


class SamplerSettings(Struct):
    """What reports need of a sampler's settings."""

    method: str
    steps: int


class Acting(Struct):
    """Policies that act together: one side of a comparison."""

    policies: Names


class Settings(Acting):
    """What reports need of the settings that determine the results of a run."""

    fingerprints: dict[str, str]
    env: EnvSettings
    sampler: SamplerSettings
    sides: tuple[Acting, Acting] | None = None

    def __post_init__(self) -> None:
        names = {name for side in (self, *(self.sides or ())) for name in side.policies}
        if lacking := sorted(names - {*self.fingerprints}):
            raise ValueError(f"fingerprints lack {lacking[0]}")


class Resolved(Struct):
    """What reports need of the whole configuration."""

    env: EnvSettings
    sampler: SamplerSettings


class RunManifest(Struct):
    """What reports need of a manifest."""

    config: Settings
    versions: dict[str, str]
    resolved: Resolved | None = None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run folder, checked.

    Raises:
        InputError: it is missing, damaged or of another version, or a field does not fit and is named.
    """
    manifest = upgraded(read_versioned(Manifest, path / "manifest.json"))
    convert(RunManifest, manifest, str(path / "manifest.json"))
    return manifest


def read_run(path: Path) -> Run:
    """A finished run.

    Raises:
        InputError: it is unfinished, damaged or of another version.
        RunError: a row is damaged.
    """
    summary, manifest = read_summary(path), read_manifest(path)
    run = Run(path, manifest, summary, tuple(read_rows(path / "episodes.jsonl")))
    for number, row in enumerate(run.rows, 1):
        sides = manifest["config"].get("sides") or ()
        if (row.phase == "compare" and row.candidate >= len(sides)) or len(row.weights) % len(acting(manifest, row)):
            raise InputError(f"{path / 'episodes.jsonl'}, line {number}: candidate or weights do not fit manifest.json")
    if summary["kind"] == "search":
        counted = [("report", figures) for figures in (summary["winner"], *summary["parents"])]
        counted += [("search", figures) for figures in summary["candidates"]]
    else:
        counted = [("evaluate", summary)] if summary["kind"] == "evaluation" else []
    for phase, figures in counted:
        held = len(run.under(phase, figures["weights"]))
        if held != figures["n_episodes"]:
            raise InputError(
                f"{path}: summary.json counts {figures['n_episodes']} {phase} episodes of {mixture(figures['weights'])}, "
                f"episodes.jsonl holds {held}; run the same command again"
            )
    return run


@dataclass(frozen=True)
class Entry:
    """One policy or mixture in one setting: its ranked episodes by seed, from however many runs.

    `members` are those with weight; a policy alone has weight 1, whatever the composer of its run.
    """

    members: tuple[Member, ...]
    composer: str
    setting: str
    runs: tuple[Path, ...]
    rows: Mapping[int, Row]

    @property
    def name(self) -> str:
        """The policy, or each policy with its weight."""
        if len(self.members) == 1:
            return self.members[0][0]
        return " + ".join(f"{w[0]:g} {name}" if len(w) == 1 else f"{mixture(w)} {name}" for name, _, w in self.members)

    @property
    def successes(self) -> int:
        """Successful episodes."""
        return sum(row.success for row in self.rows.values())

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(row.score for row in self.rows.values()) / len(self.rows)

    @property
    def rank(self) -> tuple[float, float]:
        """Success rate, then score."""
        return self.successes / len(self.rows), self.score

    def joined(self, other: Entry) -> Entry | None:
        """Both as one, where they are the same policies in the same setting and agree on every seed they share."""
        same = (self.members, self.composer, self.setting) == (other.members, other.composer, other.setting)
        shared = self.rows.keys() & other.rows.keys()
        if not same or any(_result(self.rows[seed]) != _result(other.rows[seed]) for seed in shared):
            return None
        return replace(self, runs=(*self.runs, *other.runs), rows={**self.rows, **other.rows})


@dataclass(frozen=True)
class Paired:
    """One entry against another on the seeds that both have; `p_value` is McNemar's, two-sided. Fractions in [-1, 1]."""

    other: Entry
    n: int
    difference: float
    ci95: Interval
    p_value: float


@dataclass(frozen=True)
class Standing:
    """A line of the leaderboard.

    `p_best` is the chance to look this much worse than the first line if it were as good, times the number of lines that are
    compared with it (1 where no seed is shared); `near_best` whether that leaves it possible that this entry is the best.
    """

    entry: Entry
    ci95: Interval
    parent: Paired | None
    p_best: float

    @property
    def near_best(self) -> bool:
        """Cannot be told from the best."""
        return self.p_best >= ALPHA


def tasks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs grouped by what they simulate."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = f"{run.env.name}, at most {run.env.max_steps} steps"
        known = groups.get(key, [])
        if known and known[0].env != run.env:  # the same name with other options
            key += f" {json.dumps(run.env.options, sort_keys=True)}"
        groups.setdefault(key, []).append(run)
    return groups


def searched(runs: Sequence[Run]) -> set[int]:
    """The seeds on which the runs' searches chose weights."""
    return {row.seed for run in runs for row in run.rows if row.phase == "search"}


def entries(runs: Sequence[Run]) -> list[Entry]:
    """The policies and mixtures of runs of one task, without episodes on the seeds of a search."""
    used, found = searched(runs), list[Entry]()
    for run in runs:
        groups: dict[tuple[Member, ...], dict[int, Row]] = {}
        for row in run.rows:
            if row.phase in RANKED and row.seed not in used:
                groups.setdefault(run.members(row), {})[row.seed] = row
        for members, rows in groups.items():
            new = _entry(run, [member for member in members if any(member[2])], rows)
            for i, old in enumerate(found):
                if both := old.joined(new):
                    found[i] = both
                    break
            else:
                found.append(new)
    return found


def leaderboard(found: Sequence[Entry]) -> list[Standing]:
    """The entries of one task, best first.

    Each is tested against the first, one-sided and exact, at 5 % divided by the number of these tests (Bonferroni). Whichever
    entry is truly the best, it then is missing from those that cannot be told from the best with a chance of 5 % at most,
    although the first was picked by the same episodes: another must beat it by chance in one of its own n - 1 tests.
    """
    ranked = sorted(found, key=lambda entry: entry.rank, reverse=True)
    lines = []
    for entry in ranked:
        against = paired(ranked[0], entry) if entry is not ranked[0] else None
        worse = against is not None and against.difference > 0
        p_best = min(1.0, (len(ranked) - 1) * against.p_value / 2) if against and worse else 1.0
        interval = wilson(entry.successes, len(entry.rows))
        lines.append(Standing(entry, interval, best_parent(entry, ranked), p_best))
    return lines


def best_parent(entry: Entry, found: Sequence[Entry]) -> Paired | None:
    """A mixture against the one of its parents that does best on the seeds they share; None for a policy alone."""
    if len(entry.members) == 1:
        return None
    alone = [e for e in found if e.setting == entry.setting and len(e.members) == 1]
    parents = [e for e in alone if e.members[0][:2] in {member[:2] for member in entry.members}]
    both = [pair for parent in parents if (pair := paired(entry, parent))]
    return min(both, key=lambda pair: (pair.difference, -pair.other.score), default=None)


def paired(a: Entry, b: Entry) -> Paired | None:
    """Success of `a` minus success of `b` on their shared seeds; None where they share none."""
    shared = sorted(a.rows.keys() & b.rows.keys())
    if not shared:
        return None
    first, second = ([entry.rows[seed].success for seed in shared] for entry in (a, b))
    difference = (sum(first) - sum(second)) / len(shared)
    return Paired(b, len(shared), difference, paired_difference(first, second), mcnemar(first, second))


def outcome(won: bool, parents: Sequence[bool]) -> str:
    """One of OUTCOMES: what became of one seed under the mixture and under its parents."""
    if won:
        return OUTCOMES[0 if not any(parents) else 2 if all(parents) else 1]
    return OUTCOMES[5 if not any(parents) else 4 if all(parents) else 3]


def outcomes(run: Run, phase: str) -> dict[int, str]:
    """The outcome of every seed that a search's winner and all parents have met; empty where the winner is a parent."""
    both = [figures["weights"] for figures in (run.summary["winner"], *run.summary["parents"])]
    if both[0] in both[1:]:
        return {}
    mixed, *parents = (run.under(phase, weights) for weights in both)
    shared = [seed for seed in mixed if all(seed in rows for rows in parents)]
    return {seed: outcome(mixed[seed].success, [rows[seed].success for rows in parents]) for seed in shared}


def progress(rows: Sequence[Row]) -> Array:
    """After each search episode, in the order in which they finished: the success rate of the candidate that leads then.

    The leader has the highest lower end of Wilson's interval, so that one lucky episode does not lead. Its rate is that of all
    its search episodes, later ones too: where success ends an episode, those that finish first are the successful ones.
    """
    low_end = cache(lambda successes, episodes: wilson(successes, episodes)[0])
    numbers = {c: i for i, c in enumerate(sorted({row.candidate for row in rows}))}
    told, low, leaders = [(0, 0)] * len(numbers), np.full(len(numbers), -1.0), []
    for row in rows:
        c = numbers[row.candidate]
        successes, episodes = told[c]
        told[c] = successes + row.success, episodes + 1
        low[c] = low_end(*told[c])
        leaders.append(int(low.argmax()))
    return np.array([successes / episodes for successes, episodes in told])[leaders]


def _entry(run: Run, members: Sequence[Member], rows: Mapping[int, Row]) -> Entry:
    if len(members) > 1:
        return Entry(tuple(members), json.dumps(run.resolved.get("composer")), run.setting, (run.path,), rows)
    ((name, fingerprint, _),) = members
    return Entry(((name, fingerprint, (1.0,)),), "", run.setting, (run.path,), rows)


def _result(row: Row) -> tuple[bool, float, int]:
    return row.success, row.score, row.steps
