"""The paper's table on Lift, Can and Square with the bundled policies: `python scripts/reproduce.py [TASK ...]`.

For each pair: 11 weights on 50 search seeds, winner and parents on 100 report seeds. Writes docs/results/robomimic.md from the
finished pairs, beside the paper's published figures. Interrupt it at will: the same command goes on. Hours on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import ROOT, best_parent, curves, parents_of, parents_table, run, short, winners, write_cards

from gpc.commands.config import load_config
from gpc.disk import write_atomically

TASKS = {"lift": "Lift", "can": "Can", "square": "Square"}
PAIRS = (("diffusion", "flow"), ("flow", "beso"), ("flow", "image"), ("image", "points"))
PROTOCOL = ["search=grid", "search.episodes=50", "report.episodes=100"]
MAX_STEPS = {"lift": 200, "can": 300, "square": 300}  # no demonstration is longer than 61, 207, 231
PAGE = ROOT / "docs/results/robomimic.md"
MODERATE = 30.0  # success, %, from which on the paper calls a parent moderate

# Success, %, of 200 episodes (arXiv 2510.01068, table 1): the parents, their convex composition.
PAPER = {
    "DP + MP": {"lift": (98.5, 98.5, 99.5), "can": (34.5, 5.0, 34.5), "square": (2.0, 3.0, 8.0)},
    "Florence-D + DP": {"lift": (97.0, 98.5, 100.0), "can": (61.5, 34.5, 62.5), "square": (46.5, 2.0, 61.5)},
    "Florence-D + MP": {"lift": (97.0, 98.5, 100.0), "can": (61.5, 5.0, 63.0), "square": (46.5, 3.0, 54.5)},
    "Florence-F + FP": {"lift": (98.5, 13.0, 98.5), "can": (89.0, 95.0, 98.5), "square": (88.5, 77.5, 92.5)},
    "pi0 + FP": {"lift": (99.0, 13.0, 100.0), "can": (96.5, 95.0, 99.5), "square": (92.5, 77.5, 94.0)},
}


def pairs_of(task: str) -> list[tuple[str, str]]:
    """The pairs whose policies are bundled."""
    known = {path.name for path in (ROOT / "policies/bundled").iterdir()}
    named = [(f"{task}-{a}", f"{task}-{b}") for a, b in PAIRS]
    return [pair for pair in named if set(pair) <= known]


def folder_of(pair: tuple[str, str]) -> Path:
    return PAGE.parent / "runs" / f"{pair[0]}-{short(pair[1])}"


def finished(pair: tuple[str, str]) -> bool:
    return (folder_of(pair) / "summary.json").exists()


def findings(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paper's three findings, asked of our pairs; the parents' success is that on the report seeds."""
    moderate = [s for s in summaries if min(_rates(s)) >= MODERATE]
    bad = [s for s in summaries if min(_rates(s)) < MODERATE]
    unequal = [s for s in summaries if len(set(_rates(s))) > 1]
    larger = sum(_weight_of_better(s) > 0.5 for s in unequal)
    return [
        f"1. Both parents moderate (at least {MODERATE:g} %), so a gain. {_counted(moderate)}",
        f"   {'Confirmed' if any(map(_gained, moderate)) else 'Not confirmed'} here.",
        f"2. One parent bad (below {MODERATE:g} %), so no gain over the better. {_counted(bad)}",
        f"   {'Contradicted' if any(map(_gained, bad)) else 'In agreement'} here.",
        "3. The better parent wants the larger weight. It has it in the best mixture on the search seeds (parents apart) of",
        f"   {larger} of {len(unequal)} pairs. {'Confirmed' if larger == len(unequal) else 'Not confirmed'} here.",
    ]


def _rates(summary: Mapping[str, Any]) -> list[float]:
    return [float(parent["pc_success"]) for parent in summary["parents"]]


def _gained(summary: Mapping[str, Any]) -> bool:
    return bool(summary["pc_success_gain"] > 0 and summary["p_value"] < 0.05)


def _weight_of_better(summary: Mapping[str, Any]) -> float:
    """The better parent's weight in the mixture that did best on the search seeds."""
    rates, mixed = _rates(summary), [c for c in summary["candidates"] if max(c["weights"]) < 1]
    best = max(mixed, key=lambda c: (c["n_success"], c["avg_max_reward"]))
    return float(best["weights"][rates.index(max(rates))])


def _counted(summaries: Sequence[Mapping[str, Any]]) -> str:
    if not summaries:
        return "No such pair here."
    gains = [float(s["pc_success_gain"]) for s in summaries]
    return (
        f"{sum(g > 0 for g in gains)} of {len(gains)} winners have more successes than their best parent on the report seeds, "
        f"{sum(map(_gained, summaries))} with p < 0.05; {sum(gains) / len(gains):+.1f} points on average."
    )


def beside(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Ours and the paper's: parent, parent -> composition."""
    lines = [f"| pair | {' | '.join(TASKS.values())} |", f"|---|{'---|' * len(TASKS)}"]
    for pair, found in PAPER.items():
        cells = [f"{a:g}, {b:g} -> {c:g}" for a, b, c in (found[task] for task in TASKS)]
        lines.append(f"| {pair} (paper) | {' | '.join(cells)} |")
    for a, b in PAIRS:
        cells = []
        for task in TASKS:
            own = [s for s in summaries.get(task, ()) if [short(p) for p in s["policies"]] == [a, b]]
            cells.append(_cell(own[0]) if own else "")
        lines.append(f"| {a} + {b} (gpc) | {' | '.join(cells)} |")
    return lines


def _cell(summary: Mapping[str, Any]) -> str:
    first, second = (p["pc_success"] for p in summary["parents"])
    return f"{first:g}, {second:g} -> {summary['winner']['pc_success']:g}"


def page(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The Markdown lines."""
    config = load_config("search", ["env=lift", *PROTOCOL, "policies=[a,b]"])
    search, report = config.search, config.report
    everything = [s for summaries in found.values() for s in summaries]
    gains = [float(s["pc_success_gain"]) for s in everything]
    best = sum(best_parent(s)["n_success"] < s["winner"]["n_success"] for s in everything)
    return [
        "# Lift, Can, Square: the paper's table with our policies",
        "",
        "Written by `scripts/reproduce.py` from the run folders named below (rows, manifests and summaries are in the repository).",
        f"For each pair: 11 weights on search seeds {search.seed} to {search.seed + search.episodes - 1}; then the winner and both",
        f"parents on report seeds {report.seed} to {report.seed + report.episodes - 1}, which chose nothing. Success is",
        f"robosuite's own test. Sampler: {config.sampler.method}, {config.sampler.steps} steps. Brackets are 95 % intervals.",
        "",
        f"Episodes end after {', '.join(f'{steps} steps ({TASKS[task]})' for task, steps in MAX_STEPS.items())}.",
        "",
        "What differs from the paper: our data are a scripted, multi-modal expert's (scripts/collect.py), theirs are robomimic's",
        "human demonstrations; our networks have about two million weights and were trained for minutes on a CPU; theirs picked",
        "the weight on the episodes that they report, ours on other seeds. Heights are not comparable; the effect of composing is.",
        "",
        f"{best} of {len(everything)} winners have more successes than their best parent on the report seeds;",
        f"the mean gain is {sum(gains) / len(gains):+.1f} points.",
        "",
        "## Beside the paper: success %, the parents, then their convex composition",
        "",
        *beside(found),
        "",
        "## The paper's findings on our curves",
        "",
        *findings(everything),
        *(line for task, summaries in found.items() for line in _section(task, summaries)),
    ]


def _section(task: str, summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    table, parents = winners(summaries), parents_table(parents_of(summaries), {})
    return ["", f"## {TASKS[task]}", "", *parents, "", *table, "", *curves(summaries, PAGE)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}; all by default")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page from the finished pairs")
    args = parser.parse_args()
    found = {}
    for task in TASKS:
        asked = task in args.tasks and not args.page
        pairs = [pair for pair in pairs_of(task) if asked or finished(pair)]
        if pairs:
            keys = [f"env={task}", f"env.max_steps={MAX_STEPS[task]}", *PROTOCOL]
            found[task] = [run("search", folder_of(pair), pair, *keys) for pair in pairs]
    for task, summaries in found.items():
        write_cards(parents_of(summaries), task)
    write_atomically(PAGE, "\n".join(page(found)) + "\n")


if __name__ == "__main__":
    main()
