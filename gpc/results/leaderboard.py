"""Finished runs on disk, and several of them together: leaderboard, outcomes, progress of a search.

Only the phases "report" and "evaluate" rank policies: their episodes were fixed beforehand. Search episodes chose the weights,
and the length of a comparison depends on its results. An episode on a seed that a search of the study used on the task is
left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.results.devices import DeviceSettings, device_of
from gpc.results.run_folder import Manifest, Row, read_rows, read_versioned
from gpc.results.stats import Interval, mcnemar, paired_difference, wilson
from gpc.results.summary import Names, mixture, read_summary, summarize_begun
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
"""A policy's name and fingerprint, and its weight; several weights if an earlier version's composer had rows of them."""


@dataclass(frozen=True)
class Run:
    """A finished run; `rows` are in the order in which the episodes finished."""

    path: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Full configuration; of early runs the settings that determined the results."""
        config: Mapping[str, Any] = self.manifest.get("resolved") or self.manifest["config"]
        return config

    @property
    def env(self) -> EnvSpec:
        """The environment; `n_action_steps`, which belongs to the policies, is None."""
        env = self.resolved["env"]
        return EnvSpec(env.get("type") or str(env["class"]), None, env["max_steps"], options=env.get("options") or {})

    @property
    def setting(self) -> str:
        """What determines an episode beside weights and seed.

        Sampler, actions per chunk and device.
        """
        steps = self.resolved["env"]["n_action_steps"]
        return json.dumps([self.resolved["sampler"], steps, device_of(self.manifest)], sort_keys=True)

    def members(self, row: Row) -> tuple[Member, ...]:
        """Return the policies of an episode in order, also those with weight 0."""
        names, prints = acting(self.manifest, row), self.manifest["config"]["fingerprints"]
        return tuple((name, prints[name], row.weights[k :: len(names)]) for k, name in enumerate(names))

    def under(self, phase: str, weights: Sequence[float]) -> dict[int, Row]:
        """Return the rows of a phase under these weights, by seed."""
        return {row.seed: row for row in self.rows if row.phase == phase and row.weights == tuple(weights)}


def acting(manifest: Mapping[str, Any], row: Row) -> list[str]:
    """Return the names of the policies that the weights of a row belong to."""
    config = manifest["config"]
    names: list[str] = (config["sides"][row.candidate] if row.phase == "compare" else config)["policies"]
    return names


class EnvSettings(Struct, rename={"class_": "class"}):
    """Settings of an environment that reports use; a class of Python has no type."""

    n_action_steps: int | None
    max_steps: int
    type: str | None = None
    class_: Any = None
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.type is None and self.class_ is None:
            raise ValueError("no type")


class MethodSettings(Struct):
    """What reports need of a sampler's method that is an object."""

    type: str


class SamplerSettings(Struct):
    """Settings of a sampler that reports use."""

    method: str | MethodSettings
    steps: int


class Acting(DeviceSettings, kw_only=True):
    """Policies that act together: one side of a comparison."""

    policies: Names


class Settings(Acting, kw_only=True):
    """Settings that determine the results, as far as reports use them."""

    fingerprints: dict[str, str]
    env: EnvSettings
    sampler: SamplerSettings
    sides: tuple[Acting, Acting] | None = None

    def __post_init__(self) -> None:
        names = {name for side in (self, *(self.sides or ())) for name in side.policies}
        if lacking := sorted(names - {*self.fingerprints}):
            raise ValueError(f"fingerprints lack {lacking[0]}")


class Resolved(Struct):
    """Full configuration, as far as reports use it."""

    env: EnvSettings
    sampler: SamplerSettings


class RunManifest(Struct):
    """Manifest, as far as reports use it."""

    config: Settings
    versions: dict[str, str]
    resolved: Resolved | None = None


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest of a run folder and check it.

    Raises:
        InputError: If it is missing, damaged or of another version, or a field does not fit and is named.
    """
    manifest = upgraded(read_versioned(Manifest, path / "manifest.json"))
    convert(RunManifest, manifest, str(path / "manifest.json"))
    return manifest


def read_run(path: Path) -> Run:
    """Read a finished run folder and check it.

    Raises:
        InputError: If it is unfinished, damaged or of another version.
        RunError: If a row is damaged.
    """
    summary, manifest = read_summary(path), read_manifest(path)
    run = Run(path, manifest, summary, _rows_of(path, manifest))
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


def read_begun(path: Path) -> Run:
    """Read a run folder that is not finished; its summary has what the rows give.

    Raises:
        InputError: If it is damaged or of another version, or no episode has finished.
        RunError: If a row is damaged.
    """
    manifest = read_manifest(path)
    rows = _rows_of(path, manifest)
    if not rows:
        raise InputError(f"{path} is not a finished gpc run, and no episode of it has finished")
    return Run(path, manifest, summarize_begun(manifest["config"], rows), rows)


def begun(path: Path) -> bool:
    """Return whether a folder holds a run that is not finished."""
    return os.path.isfile(path / "episodes.jsonl") and not os.path.lexists(path / "summary.json")


def _rows_of(path: Path, manifest: Mapping[str, Any]) -> tuple[Row, ...]:
    """Read the rows of a run and check that they fit its manifest."""
    rows, sides = tuple(read_rows(path / "episodes.jsonl")), manifest["config"].get("sides") or ()
    for number, row in enumerate(rows, 1):
        if (row.phase == "compare" and row.candidate >= len(sides)) or len(row.weights) % len(acting(manifest, row)):
            raise InputError(f"{path / 'episodes.jsonl'}, line {number}: candidate or weights do not fit manifest.json")
    return rows


@dataclass(frozen=True)
class Entry:
    """One policy or mixture in one setting, with its ranked episodes of all runs.

    Attributes:
        members: Policies with weight above 0; a policy alone has weight 1 under any composer.
        composer: JSON; empty for a policy alone.
        setting: See `Run.setting`.
        runs: Run folders.
        rows: Episodes by seed.
    """

    members: tuple[Member, ...]
    composer: str
    setting: str
    runs: tuple[Path, ...]
    rows: Mapping[int, Row]

    @property
    def name(self) -> str:
        """Name of the policy, or of each policy with its weight."""
        if len(self.members) == 1:
            return self.members[0][0]
        return " + ".join(f"{w[0]:g} {name}" if len(w) == 1 else f"{mixture(w)} {name}" for name, _, w in self.members)

    @property
    def successes(self) -> int:
        """Number of successful episodes."""
        return sum(row.success for row in self.rows.values())

    @property
    def score(self) -> float:
        """Mean score."""
        return sum(row.score for row in self.rows.values()) / len(self.rows)

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: success rate, then score."""
        return self.successes / len(self.rows), self.score

    def merged(self, other: Entry) -> Entry | None:
        """Return both as one entry, or None.

        They are merged if policies, composer and setting are the same and all shared seeds have equal results.
        """
        same = (self.members, self.composer, self.setting) == (other.members, other.composer, other.setting)
        shared = self.rows.keys() & other.rows.keys()
        if not same or any(_result(self.rows[seed]) != _result(other.rows[seed]) for seed in shared):
            return None
        return replace(self, runs=(*self.runs, *other.runs), rows={**self.rows, **other.rows})


@dataclass(frozen=True)
class Paired:
    """One entry minus another on shared seeds: fractions in [-1, 1], McNemar's p."""

    other: Entry
    n: int
    difference: float
    ci95: Interval
    p_value: float


@dataclass(frozen=True)
class Standing:
    """A line of the leaderboard.

    Attributes:
        entry: The policy or mixture.
        ci95: Interval of its success.
        parent: Difference to its best parent.
        p_best: One-sided p-value of the difference to the first line, times the number of lines that are compared with it; 1
            if no seed is shared.
    """

    entry: Entry
    ci95: Interval
    parent: Paired | None
    p_best: float

    @property
    def near_best(self) -> bool:
        """Whether the entry is not shown to be worse than the first line."""
        return self.p_best >= ALPHA


def tasks(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs by environment, its options and `max_steps`."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = f"{run.env.name}, at most {run.env.max_steps} steps"
        known = groups.get(key, [])
        if known and known[0].env != run.env:  # the same name with other options
            key += f" {json.dumps(run.env.options, sort_keys=True)}"
        groups.setdefault(key, []).append(run)
    return groups


def searched(runs: Sequence[Run]) -> set[int]:
    """Return the seeds on which the searches among the runs chose weights."""
    return {row.seed for run in runs for row in run.rows if row.phase == "search"}


def entries(runs: Sequence[Run]) -> list[Entry]:
    """Return the entries of one task, without episodes on the seeds of a search."""
    used, result = searched(runs), list[Entry]()
    for run in runs:
        groups: dict[tuple[Member, ...], dict[int, Row]] = {}
        for row in run.rows:
            if row.phase in RANKED and row.seed not in used:
                groups.setdefault(run.members(row), {})[row.seed] = row
        for members, rows in groups.items():
            new = _entry(run, [member for member in members if any(member[2])], rows)
            for i, old in enumerate(result):
                if both := old.merged(new):
                    result[i] = both
                    break
            else:
                result.append(new)
    return result


def leaderboard(entries: Sequence[Entry]) -> list[Standing]:
    """Rank the entries of one task, best first.

    Each is tested against the first, one-sided and exact, at 5 % divided by the number of these tests (Bonferroni). The truly
    best entry is then not `near_best` with a probability of at most 5 %, although the same episodes chose the first line:
    another entry must beat it by chance in one of n - 1 tests.
    """
    ranked = sorted(entries, key=lambda entry: entry.rank, reverse=True)
    lines = []
    for entry in ranked:
        against = paired(ranked[0], entry) if entry is not ranked[0] else None
        worse = against is not None and against.difference > 0
        p_best = min(1.0, (len(ranked) - 1) * against.p_value / 2) if against and worse else 1.0
        interval = wilson(entry.successes, len(entry.rows))
        lines.append(Standing(entry, interval, best_parent(entry, ranked), p_best))
    return lines


def best_parent(entry: Entry, entries: Sequence[Entry]) -> Paired | None:
    """Compare a mixture with its best parent on shared seeds.

    Returns:
        The difference; None for a policy alone.
    """
    if len(entry.members) == 1:
        return None
    alone = [e for e in entries if e.setting == entry.setting and len(e.members) == 1]
    parents = [e for e in alone if e.members[0][:2] in {member[:2] for member in entry.members}]
    both = [pair for parent in parents if (pair := paired(entry, parent))]
    return min(both, key=lambda pair: (pair.difference, -pair.other.score), default=None)


def paired(a: Entry, b: Entry) -> Paired | None:
    """Compare `a` with `b` on their shared seeds; None if there are none."""
    shared = sorted(a.rows.keys() & b.rows.keys())
    if not shared:
        return None
    first, second = ([entry.rows[seed].success for seed in shared] for entry in (a, b))
    difference = (sum(first) - sum(second)) / len(shared)
    return Paired(b, len(shared), difference, paired_difference(first, second), mcnemar(first, second))


def outcome(won: bool, parents: Sequence[bool]) -> str:
    """Classify a seed by the successes of mixture and parents, as in `OUTCOMES`."""
    if won:
        return OUTCOMES[0 if not any(parents) else 2 if all(parents) else 1]
    return OUTCOMES[5 if not any(parents) else 4 if all(parents) else 3]


def outcomes(run: Run, phase: str) -> dict[int, str]:
    """Classify every seed on which winner and all parents of a search ran.

    Args:
        run: A search.
        phase: "report" or "search".

    Returns:
        Outcome by seed; empty if the winner is a parent.
    """
    winner, parents = run.summary["winner"], run.summary["parents"]
    if not winner or len(parents) < len(run.summary["policies"]):  # the run is not finished
        return {}
    both = [figures["weights"] for figures in (winner, *parents)]
    if both[0] in both[1:]:
        return {}
    mixed, *alone = (run.under(phase, weights) for weights in both)
    shared = [seed for seed in mixed if all(seed in rows for rows in alone)]
    return {seed: outcome(mixed[seed].success, [rows[seed].success for rows in alone]) for seed in shared}


def progress(rows: Sequence[Row]) -> Array:
    """Compute the success rate of the leading candidate after each search episode.

    The leader has the highest lower end of Wilson's interval, so that one lucky episode does not lead. Its rate is that of all
    its search episodes, also later ones: if success ends an episode, the successful ones finish first.

    Args:
        rows: Search episodes in the order in which they finished.

    Returns:
        Rates (rows,), fractions.
    """
    low_end = cache(lambda successes, episodes: wilson(successes, episodes)[0])
    numbers = {c: i for i, c in enumerate(sorted({row.candidate for row in rows}))}
    counts, low, leaders = [(0, 0)] * len(numbers), np.full(len(numbers), -1.0), []
    for row in rows:
        c = numbers[row.candidate]
        successes, episodes = counts[c]
        counts[c] = successes + row.success, episodes + 1
        low[c] = low_end(*counts[c])
        leaders.append(int(low.argmax()))
    return np.array([successes / episodes for successes, episodes in counts])[leaders]


def _entry(run: Run, members: Sequence[Member], rows: Mapping[int, Row]) -> Entry:
    if len(members) > 1:
        return Entry(tuple(members), json.dumps(run.resolved.get("composer")), run.setting, (run.path,), rows)
    ((name, fingerprint, _),) = members
    return Entry(((name, fingerprint, (1.0,)),), "", run.setting, (run.path,), rows)


def _result(row: Row) -> tuple[bool, float, int]:
    return row.success, row.score, row.steps
