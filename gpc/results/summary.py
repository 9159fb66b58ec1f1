"""Compute `summary.json` from the rows of a run (its schema is in docs/summary-schema.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from gpc.results.run_folder import Row, read_versioned
from gpc.results.sequential import anytime_difference, anytime_p, anytime_proportion
from gpc.results.stats import (
    Interval,
    discordant,
    mcnemar,
    mean_interval,
    paired_t,
    pairs_needed,
    resolution,
    score_interval,
    wilson,
)
from gpc.weights.simplex import one_hot

SCHEMA_VERSION = 2  # of summary.json; version 1 named `optimality_gap_ci95` "epsilon"
LEAST = 5  # episodes for which an interval is shown
SMALL_GAIN = 5.0  # points of success, the size of published gains: verdicts give the pairs that such a gain takes

UNREPORTED = "no success is reported (is_success, success or tasks_to_complete in the info of a step); compare scores"

Count = Annotated[int, Meta(ge=1)]
Names = Annotated[list[str], Meta(min_length=1)]
Weighting = Annotated[list[float], Meta(min_length=1)]


class Figures(Struct):
    """Figures of one candidate; the fields are explained in docs/summary-schema.md."""

    weights: Weighting
    n_episodes: Count
    n_success: int
    pc_success: float
    pc_success_ci95: Interval
    avg_max_reward: float
    avg_max_reward_ci95: Interval
    seeds: tuple[int, int]
    success_reported: bool = True
    avg_sum_reward: float | None = None
    avg_mean_reward: float | None = None


class Timing(Struct):
    """What episodes took, of the command that ran the last ones."""

    n_episodes: Count
    seconds_per_episode: float
    ms_per_chunk: float | None


class Named(Figures, kw_only=True):
    """Figures of a parent, or of a side of a comparison."""

    name: str


class Prediction(Struct):
    """Predicted error of one candidate, from demonstrations."""

    weights: Weighting
    error: float


class Errors(Struct):
    """Denoising errors on demonstrations."""

    windows: Count
    sigmas: list[float]
    rms: dict[str, list[float]]
    correlation: list[list[list[float]]]
    weights: Weighting
    weights_per_level: list[Weighting]
    predicted: list[Prediction]
    best_parent: str
    pc_gain: float
    n_measured: int
    spearman: float | None
    spearman_p_value: float | None
    verdict: str

    def __post_init__(self) -> None:
        levels, count = len(self.sigmas), len(self.weights)
        tables = [len(self.rms), *map(len, self.weights_per_level)]
        tables += [n for level in self.correlation for n in (len(level), *map(len, level))]
        lengths = [len(self.correlation), len(self.weights_per_level), *map(len, self.rms.values())]
        if {*lengths} != {levels} or {*tables} != {count}:
            raise ValueError(f"its tables do not fit {levels} sigmas and {count} policies")


class Evaluation(Figures, tag_field="kind", tag="evaluation", kw_only=True):
    """Summary of `gpc evaluate`."""

    policies: Names
    infrastructure_errors: int
    versions: dict[str, str] | None = None
    timing: Timing | None = None


class Searched(Struct, tag_field="kind", tag="search", kw_only=True):
    """Summary of `gpc search`; early versions lack `pc_discordant` and the gap."""

    policies: Names
    candidates: list[Figures]
    winner: Figures
    parents: Annotated[list[Named], Meta(min_length=1)]
    best_parent: str
    p_value: float
    pc_success_gain: float
    avg_max_reward_gain: float
    avg_max_reward_gain_ci95: Interval
    p_value_score: float
    pc_discordant: float | None = None
    optimality_gap_ci95: float | None = None
    denoising_error: Errors | None = None
    infrastructure_errors: int
    versions: dict[str, str] | None = None
    timing: Timing | None = None
    verdict: str

    def __post_init__(self) -> None:
        length = len(self.winner.weights)
        if length % len(self.policies) or {len(c.weights) for c in (*self.candidates, *self.parents)} - {length}:
            raise ValueError(f"weights do not fit {len(self.policies)} policies")


class Compared(Struct, tag_field="kind", tag="comparison", kw_only=True):
    """Summary of `gpc compare`."""

    policies: Names
    sides: tuple[Named, Named]
    n_episodes: Count
    max_episodes: Count
    n_only_success: tuple[int, int]
    p_value: float
    better: str | None
    pc_success_gain: float
    pc_success_gain_ci95: Interval
    avg_max_reward_gain: float
    avg_max_reward_gain_ci95: Interval
    fixed_episodes: int | None
    infrastructure_errors: int
    versions: dict[str, str] | None = None
    timing: Timing | None = None
    verdict: str


def read_summary(path: Path) -> dict[str, Any]:
    """Read the summary of a run folder and check it.

    Raises:
        InputError: If the run is unfinished, its summary is damaged or of another version, or a field does not fit and is
            named.
    """
    summary = read_versioned(Evaluation | Searched | Compared, path / "summary.json", (1, SCHEMA_VERSION))
    if "epsilon" in summary:
        summary["optimality_gap_ci95"] = summary.pop("epsilon")
    return summary


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Compute success in percent and mean score of one candidate, with intervals."""
    n, successes = len(rows), sum(row.success for row in rows)
    low, high = wilson(successes, n)
    scores = [row.score for row in rows]
    return {
        "weights": list(rows[0].weights),
        "n_episodes": n,
        "n_success": successes,
        "pc_success": 100 * successes / n,
        "pc_success_ci95": [100 * low, 100 * high],
        "avg_max_reward": sum(scores) / n,
        "avg_max_reward_ci95": list(score_interval(scores)),
        "seeds": [min(row.seed for row in rows), max(row.seed for row in rows)],
        **({} if any(row.reported for row in rows) else {"success_reported": False}),
        **_rewards(rows),
    }


def _rewards(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean sum and the mean step's reward; nothing of earlier rows."""
    sums = [(row.sum_reward, row.steps) for row in rows if row.sum_reward is not None]
    if len(sums) < len(rows):
        return {}
    return {
        "avg_sum_reward": sum(total for total, _ in sums) / len(rows),
        "avg_mean_reward": sum(total / steps for total, steps in sums) / len(rows),
    }


def reported(figures: Mapping[str, Any]) -> bool:
    """Return whether the environment reported success in any of the episodes."""
    return bool(figures.get("success_reported", True))


def by_candidate(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Group rows by candidate, each group ordered by seed."""
    groups: dict[int, list[Row]] = {}
    for row in sorted(rows):
        groups.setdefault(row.candidate, []).append(row)
    return groups


def summarize_evaluation(policies: Sequence[str], rows: Sequence[Row], infrastructure_errors: int) -> dict[str, Any]:
    """Compute the summary of `gpc evaluate`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "policies": list(policies),
        **figures(rows),
        "infrastructure_errors": infrastructure_errors,
    }


def summarize_search(
    policies: Sequence[str],
    search_rows: Sequence[Row],
    report_rows: Sequence[Row],
    winner: int,
    parents: Mapping[str, int],
    infrastructure_errors: int,
) -> dict[str, Any]:
    """Compute the summary of `gpc search`.

    The best parent is the one with most successes (then score) on the report seeds themselves, which is the harder one to
    beat.

    Args:
        policies: Names.
        search_rows: Episodes of all candidates on search seeds.
        report_rows: Episodes of winner and parents on report seeds.
        winner: Candidate that the search chose.
        parents: Candidate that is each policy alone, by name.
        infrastructure_errors: Simulators that failed; their episodes were repeated.
    """
    curve = by_candidate(search_rows)
    report = by_candidate(report_rows)
    named = [{"name": name, **figures(report[c])} for name, c in parents.items()]
    best = max(parents, key=lambda name: (figures(report[parents[name]])["n_success"], _score(report[parents[name]])))
    first, second = report[winner], report[parents[best]]
    gains = [a.score - b.score for a, b in zip(first, second, strict=True)]
    result = {
        "schema_version": SCHEMA_VERSION,
        "kind": "search",
        "policies": list(policies),
        "candidates": [figures(rows) for rows in curve.values()],
        "winner": figures(first),
        "parents": named,
        "best_parent": best,
        "p_value": mcnemar(_successes(first), _successes(second)),
        "pc_success_gain": figures(first)["pc_success"] - figures(second)["pc_success"],
        "avg_max_reward_gain": sum(gains) / len(gains),
        "avg_max_reward_gain_ci95": list(mean_interval(gains)),
        "p_value_score": paired_t([r.score for r in first], [r.score for r in second]),
        "pc_discordant": 100 * sum(discordant(_successes(first), _successes(second))) / len(first),
        "optimality_gap_ci95": optimality_gap(curve, winner),
        "infrastructure_errors": infrastructure_errors,
    }
    return result | {"verdict": verdict(result)}


def summarize_comparison(
    names: Sequence[str], sides: Sequence[Sequence[Row]], most: int, infrastructure_errors: int
) -> dict[str, Any]:
    """Compute the summary of `gpc compare` from both sides' rows on the same seeds.

    Args:
        names: Of the two sides.
        sides: Rows of each, in the order of the seeds.
        most: Largest number of episodes of a side.
        infrastructure_errors: Simulators that failed; their episodes were repeated.
    """
    first, second = sides
    only_a, only_b = discordant(_successes(first), _successes(second))
    n, p_value = len(first), anytime_p(only_a, only_b)
    gains = [a.score - b.score for a, b in zip(first, second, strict=True)]
    difference, share = (only_a - only_b) / n, (only_a + only_b) / n
    result = {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "policies": list(names),
        "sides": [{"name": name, **figures(rows), **_anytime(rows)} for name, rows in zip(names, sides, strict=True)],
        "n_episodes": n,
        "max_episodes": most,
        "n_only_success": [only_a, only_b],
        "p_value": p_value,
        "better": names[0 if only_a > only_b else 1] if p_value < 0.05 else None,
        "pc_success_gain": 100 * difference,
        "pc_success_gain_ci95": [100 * end for end in anytime_difference(only_a, only_b, n)],
        "avg_max_reward_gain": sum(gains) / n,
        "avg_max_reward_gain_ci95": list(mean_interval(gains)),
        "fixed_episodes": pairs_needed(abs(difference), share) if difference else None,
        "infrastructure_errors": infrastructure_errors,
    }
    return result | {"verdict": comparison_verdict(result)}


def summarize_begun(config: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Compute what a summary holds before the run has ended.

    Args:
        config: Settings of the manifest.
        rows: The finished episodes, at least one.
    """
    policies, phases = config["policies"], {row.phase for row in rows}
    if sides := config.get("sides"):
        played = by_candidate(rows)
        named = [
            {"name": " + ".join(sides[c]["policies"]), **figures(group), **_anytime(group)}
            for c, group in played.items()
        ]
        return {"kind": "comparison", "policies": [side["name"] for side in named], "sides": named}
    if "evaluate" in phases:
        return {"kind": "evaluation", "policies": policies, **figures(rows)}
    search, report = (by_candidate([row for row in rows if row.phase == phase]) for phase in ("search", "report"))
    reported = [figures(group) for group in report.values()]
    corners = {
        one_hot(i, len(policies)) * (len(rows[0].weights) // len(policies)): name for i, name in enumerate(policies)
    }
    parents = [{"name": corners[tuple(f["weights"])], **f} for f in reported if tuple(f["weights"]) in corners]
    winner = next((f for f in reported if tuple(f["weights"]) not in corners), None)
    candidates = [figures(group) for group in search.values()]
    return {"kind": "search", "policies": policies, "candidates": candidates, "parents": parents, "winner": winner}


def optimality_gap(curve: Mapping[int, Sequence[Row]], winner: int) -> float | None:
    """Bound how far the best candidate exceeds the winner, at 95 % confidence.

    The bound is the largest upper end of the paired differences to the winner. Only the comparisons with the best candidate
    must hold, hence each has 1 / (candidates - 1) of the 5 % (Bonferroni). The bound holds at any stopping time, so that a
    race may drop candidates.

    Args:
        curve: Rows on search seeds by candidate.
        winner: Candidate that the search chose.

    Returns:
        Points of success; None if fewer than two candidates, or not the winner, ran on search seeds.
    """
    if len(curve) < 2 or winner not in curve:
        return None
    level = 1 - 2 * 0.05 / (len(curve) - 1)  # one-sided
    successes = {row.seed: row.success for row in curve[winner]}
    ends = []
    for rows in curve.values():
        pairs = [(row.success, successes[row.seed]) for row in rows if row.seed in successes]
        only = discordant([a for a, _ in pairs], [b for _, b in pairs])
        ends.append(anytime_difference(*only, len(pairs), level)[1])
    return 100 * max(ends)


def with_interval(value: float, interval: Interval, episodes: int, digits: int = 1, sign: str = "") -> str:
    """Return a figure and its interval as text, without one of few episodes."""
    if episodes < LEAST:
        return f"{value:{sign}.{digits}f}"
    low, high = interval
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def percent(figures: Mapping[str, Any]) -> str:
    """Return success and its interval as text."""
    return f"{with_interval(figures['pc_success'], figures['pc_success_ci95'], figures['n_episodes'])} %"


def mixture(weights: Sequence[float]) -> str:
    """Return weights as text for people."""
    return "[" + ", ".join(f"{w:g}" for w in weights) + "]"


def verdict(summary: Mapping[str, Any]) -> str:
    """Return the outcome of a search in words.

    Whether the winner beats the best parent on the report seeds, which differences these seeds resolve, how far the best
    candidate may exceed the winner, and what to use.
    """
    if not reported(summary["winner"]):
        (low, high), p = summary["avg_max_reward_gain_ci95"], summary["p_value_score"]
        gain = f"{summary['avg_max_reward_gain']:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.3g}"
        return f"{UNREPORTED}: the winner's minus that of the best parent, {summary['best_parent']}, is {gain}."
    return " ".join([_outcome(summary), *_limits(summary), _choice(summary)])


def comparison_verdict(summary: Mapping[str, Any]) -> str:
    """Return the outcome of a comparison in words.

    Which side succeeds more often, after how many pairs that is shown, how many a test of a fixed size takes, and what
    to use.
    """
    (first, second), n, p = summary["sides"], summary["n_episodes"], summary["p_value"]
    if not reported(first):
        low, high = summary["avg_max_reward_gain_ci95"]
        gain = f"{summary['avg_max_reward_gain']:+.3f} [{low:+.3f}, {high:+.3f}]"
        return f"{UNREPORTED}: that of {first['name']} minus that of {second['name']} is {gain} after {n} pairs of episodes."
    low, high = summary["pc_success_gain_ci95"]
    rates = f"{first['pc_success']:.1f} % against {second['pc_success']:.1f} %"
    gain = f"{summary['pc_success_gain']:+.1f} points [{low:+.1f}, {high:+.1f}], anytime-valid p = {p:.3g}"
    if summary["better"]:
        how = "more" if summary["better"] == first["name"] else "less"
        return (
            f"{first['name']} succeeds {how} often than {second['name']}: {rates} ({gain}), shown after {n} pairs of episodes. "
            f"A test of a fixed size needs about {summary['fixed_episodes']} for such a difference (80 % power, 5 % level). "
            f"Use {summary['better']}."
        )
    text = f"{n} pairs of episodes do not distinguish {first['name']} and {second['name']}: {rates} ({gain})."
    if share := sum(summary["n_only_success"]) / n:
        price = pairs_needed(SMALL_GAIN / 100, share)
        text += f" {SMALL_GAIN:g} points would take a test of a fixed size about {price}."
    return f"{text} With more episodes the same command continues."


def _limits(summary: Mapping[str, Any]) -> list[str]:
    """Return which differences the episodes of a search resolve, in sentences."""
    n, share, sentences = summary["winner"]["n_episodes"], summary["pc_discordant"] / 100, []
    if share:  # else winner and best parent are one, or never differ
        finest = 100 * resolution(n, share)
        resolved = f"differences of {finest:.0f} points and more" if finest < 100 else "no difference at all"
        price = pairs_needed(SMALL_GAIN / 100, share)
        sentences = [
            f"{n} report seeds resolve {resolved} (80 % power, 5 % level); {SMALL_GAIN:g} points take about {price}."
        ]
    if summary["optimality_gap_ci95"] is not None:
        sentences.append(
            f"With 95 % confidence the winner is within {summary['optimality_gap_ci95']:.0f} points of the best of the "
            f"{len(summary['candidates'])} weights tried: near the best, not the best."
        )
    return sentences


def _outcome(summary: Mapping[str, Any]) -> str:
    weights = mixture(summary["winner"]["weights"])
    n, best, gain = summary["winner"]["n_episodes"], summary["best_parent"], summary["pc_success_gain"]
    p = f"McNemar's exact test on {n} paired report seeds, p = {summary['p_value']:.3g}"
    if _is_parent(summary):
        return "No mixture looked better than a single policy on the search seeds."
    if summary["p_value"] < 0.05:
        how = "beats" if gain > 0 else "is worse than"
        return f"The winner {weights} {how} the best parent, {best}, by {abs(gain):.1f} points of success ({p})."
    return f"The winner {weights} is not shown to beat the best parent, {best}: {gain:+.1f} points of success ({p})."


def _choice(summary: Mapping[str, Any]) -> str:
    """Return what to use: a winner that is shown to be better, else a parent."""
    better = summary["pc_success_gain"] > 0 and not _is_parent(summary)
    if better and summary["p_value"] < 0.05:
        return f"Use weights {mixture(summary['winner']['weights'])}."
    return f"Use {summary['best_parent']} alone" + (", unless more report episodes show the gain." if better else ".")


def _is_parent(summary: Mapping[str, Any]) -> bool:
    return summary["winner"]["weights"] in [parent["weights"] for parent in summary["parents"]]


def _anytime(rows: Sequence[Row]) -> dict[str, Any]:
    successes = sum(_successes(rows))
    return {"pc_success_ci95": [100 * end for end in anytime_proportion(successes, len(rows))]}


def _successes(rows: Sequence[Row]) -> list[bool]:
    return [row.success for row in rows]


def _score(rows: Sequence[Row]) -> float:
    return sum(row.score for row in rows) / len(rows)
