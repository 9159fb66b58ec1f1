"""The findings of arXiv 2510.01068 on Lift, Can and Square, beside our pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tables import best_parent

from gpc.results.leaderboard import Run

TASKS = {"lift": "Lift", "can": "Can", "square": "Square"}
PAIRS = (("diffusion", "flow"), ("flow", "image"))
MODERATE = 30.0  # success, %, from which on the paper calls a parent moderate

# Success, %, of 200 episodes (table 1): the parents, their convex composition.
PAPER = {
    "DP + MP": {"lift": (98.5, 98.5, 99.5), "can": (34.5, 5.0, 34.5), "square": (2.0, 3.0, 8.0)},
    "Florence-D + DP": {"lift": (97.0, 98.5, 100.0), "can": (61.5, 34.5, 62.5), "square": (46.5, 2.0, 61.5)},
    "Florence-D + MP": {"lift": (97.0, 98.5, 100.0), "can": (61.5, 5.0, 63.0), "square": (46.5, 3.0, 54.5)},
    "Florence-F + FP": {"lift": (98.5, 13.0, 98.5), "can": (89.0, 95.0, 98.5), "square": (88.5, 77.5, 92.5)},
    "pi0 + FP": {"lift": (99.0, 13.0, 100.0), "can": (96.5, 95.0, 99.5), "square": (92.5, 77.5, 94.0)},
}


def beside(runs: Sequence[Run]) -> list[str]:
    """Return a table of the paper's figures and ours: parent, parent -> composition."""
    lines = [f"| pair | {' | '.join(TASKS.values())} |", f"|---|{'---|' * len(TASKS)}"]
    for pair, tasks in PAPER.items():
        cells = [f"{a:g}, {b:g} -> {c:g}" for a, b, c in (tasks[task] for task in TASKS)]
        lines.append(f"| {pair} (paper) | {' | '.join(cells)} |")
    summaries = {tuple(run.summary["policies"]): run.summary for run in runs}
    for a, b in PAIRS:
        cells = [_cell(summaries[f"{task}-{a}", f"{task}-{b}"]) for task in TASKS]
        lines.append(f"| {a} + {b} (gpc) | {' | '.join(cells)} |")
    gains = [float(summary["pc_success_gain"]) for summary in summaries.values()]
    more = sum(best_parent(s)["n_success"] < s["winner"]["n_success"] for s in summaries.values())
    return [
        *lines,
        "",
        f"{more} of {len(gains)} winners have more successes than their best parent on the report seeds;",
        f"the mean gain is {sum(gains) / len(gains):+.1f} points.",
    ]


def findings(runs: Sequence[Run]) -> list[str]:
    """Return the paper's three findings on our pairs, by success on the report seeds."""
    summaries = [run.summary for run in runs]
    moderate = [s for s in summaries if min(_rates(s)) >= MODERATE]
    bad = [s for s in summaries if min(_rates(s)) < MODERATE]
    unequal = [s for s in summaries if len(set(_rates(s))) > 1]
    larger = sum(_weight_of_better(s) > 0.5 for s in unequal)
    return [
        f"1. Both parents moderate (at least {MODERATE:g} %), so a gain. {_counted(moderate)}",
        f"   {'Confirmed' if any(map(_gained, moderate)) else 'Not confirmed'} here.",
        f"2. One parent bad (below {MODERATE:g} %), so no gain over the better. {_counted(bad)}",
        f"   {'Contradicted' if any(map(_gained, bad)) else 'In agreement'} here.",
        "3. The better parent has the larger weight. It has it in the best mixture on the search seeds (parents excluded) of",
        f"   {larger} of {len(unequal)} pairs. {'Confirmed' if larger == len(unequal) else 'Not confirmed'} here.",
    ]


def _rates(summary: Mapping[str, Any]) -> list[float]:
    return [float(parent["pc_success"]) for parent in summary["parents"]]


def _gained(summary: Mapping[str, Any]) -> bool:
    return bool(summary["pc_success_gain"] > 0 and summary["p_value"] < 0.05)


def _weight_of_better(summary: Mapping[str, Any]) -> float:
    """Return the better parent's weight in the best mixture on the search seeds."""
    rates, mixed = _rates(summary), [c for c in summary["candidates"] if max(c["weights"]) < 1]
    best = max(mixed, key=lambda c: (c["n_success"], c["avg_max_reward"]))
    return float(best["weights"][rates.index(max(rates))])


def _counted(summaries: Sequence[Mapping[str, Any]]) -> str:
    gains = [float(s["pc_success_gain"]) for s in summaries]
    return (
        f"{sum(g > 0 for g in gains)} of {len(gains)} winners have more successes than their best parent on the report seeds, "
        f"{sum(map(_gained, summaries))} with p < 0.05; {sum(gains) / len(gains):+.1f} points on average."
    )


def _cell(summary: Mapping[str, Any]) -> str:
    first, second = (p["pc_success"] for p in summary["parents"])
    return f"{first:g}, {second:g} -> {summary['winner']['pc_success']:g}"
