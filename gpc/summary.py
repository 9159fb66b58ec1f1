"""What the episodes say: `summary.json`, from rows alone (its schema is in docs/summary-schema.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpc.record import Row
from gpc.stats import mcnemar, mean_interval, paired_t, wilson

SCHEMA_VERSION = 1


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Success in percent and mean score of one candidate's episodes, each with its 95 % interval."""
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
        "avg_max_reward_ci95": list(mean_interval(scores)),
        "seeds": [min(row.seed for row in rows), max(row.seed for row in rows)],
    }


def by_candidate(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Rows grouped by candidate, each group ordered by seed."""
    groups: dict[int, list[Row]] = {}
    for row in sorted(rows):
        groups.setdefault(row.candidate, []).append(row)
    return groups


def summarize_evaluation(policies: Sequence[str], rows: Sequence[Row], infrastructure_errors: int) -> dict[str, Any]:
    """The summary of `gpc evaluate`."""
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
    """The summary of `gpc search`: the curve on search seeds, winner and parents on report seeds, and the paired test.

    `parents` gives each policy's candidate number. The best parent is the one with most successes (then score) on the
    report seeds themselves, which is the harder one to beat.
    """
    curve = by_candidate(search_rows)
    report = by_candidate(report_rows)
    named = [{"name": name, **figures(report[c])} for name, c in parents.items()]
    best = max(parents, key=lambda name: (figures(report[parents[name]])["n_success"], _score(report[parents[name]])))
    first, second = report[winner], report[parents[best]]
    p_value = mcnemar([r.success for r in first], [r.success for r in second])
    gains = [a.score - b.score for a, b in zip(first, second, strict=True)]
    result = {
        "schema_version": SCHEMA_VERSION,
        "kind": "search",
        "policies": list(policies),
        "candidates": [figures(rows) for rows in curve.values()],
        "winner": figures(first),
        "parents": named,
        "best_parent": best,
        "p_value": p_value,
        "pc_success_gain": figures(first)["pc_success"] - figures(second)["pc_success"],
        "avg_max_reward_gain": sum(gains) / len(gains),
        "avg_max_reward_gain_ci95": list(mean_interval(gains)),
        "p_value_score": paired_t([r.score for r in first], [r.score for r in second]),
        "infrastructure_errors": infrastructure_errors,
    }
    return result | {"verdict": verdict(result)}


def verdict(summary: Mapping[str, Any]) -> str:
    """One plain sentence: does the winner beat the best parent on the report seeds?"""
    weights = ", ".join(f"{w:g}" for w in summary["winner"]["weights"])
    n, best, gain = summary["winner"]["n_episodes"], summary["best_parent"], summary["pc_success_gain"]
    p = f"McNemar's exact test on {n} paired report seeds, p = {summary['p_value']:.3g}"
    if sum(w > 0 for w in summary["winner"]["weights"]) == 1:
        return f"No mixture looked better than a single policy on the search seeds: the winner [{weights}] is a parent."
    if summary["p_value"] < 0.05:
        how = "beats" if gain > 0 else "is worse than"
        return f"The winner [{weights}] {how} the best parent, {best}, by {abs(gain):.1f} points of success ({p})."
    return (
        f"The winner [{weights}] is not shown to beat the best parent, {best}: {gain:+.1f} points of success ({p}). "
        "More report episodes can tell smaller differences apart."
    )


def _score(rows: Sequence[Row]) -> float:
    return sum(row.score for row in rows) / len(rows)
