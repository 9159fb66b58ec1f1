"""What the episodes say: `summary.json`, from rows alone (its schema is in docs/summary-schema.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpc.record import Row
from gpc.sequential import anytime_difference, anytime_p, anytime_proportion
from gpc.stats import discordant, mcnemar, mean_interval, paired_t, pairs_needed, resolution, wilson

SCHEMA_VERSION = 1
SMALL_GAIN = 5.0  # points of success; what verdicts price: the gains that are published are of this size


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
        "epsilon": epsilon(curve, winner),
        "infrastructure_errors": infrastructure_errors,
    }
    return result | {"verdict": verdict(result)}


def summarize_comparison(
    names: Sequence[str], sides: Sequence[Sequence[Row]], most: int, infrastructure_errors: int
) -> dict[str, Any]:
    """The summary of `gpc compare`: two sides' rows on the same seeds, of `most` episodes each that there may be."""
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


def epsilon(curve: Mapping[int, Sequence[Row]], winner: int) -> float | None:
    """By how many points of success the best of the candidates may exceed the winner, with 95 % confidence.

    The largest upper end of the paired differences to the winner. Whichever candidate is the best, only its comparisons with
    the others must hold, hence 1 / (candidates - 1) of the 5 % for each (Bonferroni); at any stopping time, so that a race
    may drop candidates. None where fewer than two candidates, or not the winner, met search seeds.
    """
    if len(curve) < 2 or winner not in curve:
        return None
    level = 1 - 2 * 0.05 / (len(curve) - 1)  # one-sided
    known = {row.seed: row.success for row in curve[winner]}
    ends = []
    for rows in curve.values():
        pairs = [(row.success, known[row.seed]) for row in rows if row.seed in known]
        only = discordant([a for a, _ in pairs], [b for _, b in pairs])
        ends.append(anytime_difference(*only, len(pairs), level)[1])
    return 100 * max(ends)


def mixture(weights: Sequence[float]) -> str:
    """Weights as people read them."""
    return "[" + ", ".join(f"{w:g}" for w in weights) + "]"


def verdict(summary: Mapping[str, Any]) -> str:
    """Does the winner beat the best parent on the report seeds, what could they tell, and how near is it to the best?"""
    return " ".join([_outcome(summary), *_limits(summary)])


def comparison_verdict(summary: Mapping[str, Any]) -> str:
    """Which side succeeds more often, since when that is known, and what a test of a fixed size would have taken."""
    (first, second), n, p = summary["sides"], summary["n_episodes"], summary["p_value"]
    low, high = summary["pc_success_gain_ci95"]
    rates = f"{first['pc_success']:.1f} % against {second['pc_success']:.1f} %"
    gain = f"{summary['pc_success_gain']:+.1f} points [{low:+.1f}, {high:+.1f}], anytime-valid p = {p:.3g}"
    if summary["better"]:
        how = "more" if summary["better"] == first["name"] else "less"
        return (
            f"{first['name']} succeeds {how} often than {second['name']}: {rates} ({gain}), known after {n} pairs of episodes. "
            f"A test of a fixed size needs about {summary['fixed_episodes']} for such a difference (80 % power, 5 % level)."
        )
    told = f"{n} pairs of episodes do not tell {first['name']} and {second['name']} apart: {rates} ({gain})."
    if share := sum(summary["n_only_success"]) / n:
        price = pairs_needed(SMALL_GAIN / 100, share)
        told += f" {SMALL_GAIN:g} points would take a test of a fixed size about {price}."
    return f"{told} With more episodes the same command goes on."


def _limits(summary: Mapping[str, Any]) -> list[str]:
    """What the episodes of a search can and cannot tell, in sentences."""
    n, share, found = summary["winner"]["n_episodes"], summary["pc_discordant"] / 100, []
    if share:  # else winner and best parent are one, or never differ
        finest = 100 * resolution(n, share)
        tell = f"differences of {finest:.0f} points and more" if finest < 100 else "no difference at all"
        price = pairs_needed(SMALL_GAIN / 100, share)
        found = [f"{n} report seeds tell {tell} (80 % power, 5 % level); {SMALL_GAIN:g} points take about {price}."]
    if summary["epsilon"] is not None:
        found.append(
            f"With 95 % confidence the winner is within {summary['epsilon']:.0f} points of the best of the "
            f"{len(summary['candidates'])} weights tried: near the best, not the best."
        )
    return found


def _outcome(summary: Mapping[str, Any]) -> str:
    weights = mixture(summary["winner"]["weights"])
    n, best, gain = summary["winner"]["n_episodes"], summary["best_parent"], summary["pc_success_gain"]
    p = f"McNemar's exact test on {n} paired report seeds, p = {summary['p_value']:.3g}"
    if summary["winner"]["weights"] in [parent["weights"] for parent in summary["parents"]]:
        return f"No mixture looked better than a single policy on the search seeds: the winner {weights} is a parent."
    if summary["p_value"] < 0.05:
        how = "beats" if gain > 0 else "is worse than"
        return f"The winner {weights} {how} the best parent, {best}, by {abs(gain):.1f} points of success ({p})."
    return f"The winner {weights} is not shown to beat the best parent, {best}: {gain:+.1f} points of success ({p})."


def _anytime(rows: Sequence[Row]) -> dict[str, Any]:
    successes = sum(_successes(rows))
    return {"pc_success_ci95": [100 * end for end in anytime_proportion(successes, len(rows))]}


def _successes(rows: Sequence[Row]) -> list[bool]:
    return [row.success for row in rows]


def _score(rows: Sequence[Row]) -> float:
    return sum(row.score for row in rows) / len(rows)
