"""The operators of a composition beside each other, for docs/results/operators.md.

    python scripts/operators.py pusht --runs docs/results/runs    # or lift: 100 report seeds each, operators-*
    python scripts/operators.py best --runs docs/results/runs     # best of 4 on fresh seeds, best-*; prints the tables

The operators all with `sampler=ancestral sampler.steps=50`, which or and and need, so that the sampler is no part of a
difference; best of 4 with the default sampler. A finished run is only read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tables import percent, run

from gpc.record import read_rows
from gpc.stats import mcnemar, paired_difference

OPERATORS = {
    "average": ("composer=average",),
    "best": ("composer=convex", "sampler.candidates=4"),
    "convex": ("composer=convex",),
    "or": ("composer=or",),
    "and": ("composer=and",),
}
KEYS = ("sampler=ancestral", "sampler.steps=50", "episodes=100", "seed=200000", "engine.workers=1")

WHO = {
    "diffusion": (("pusht-diffusion",), "weights=[1]"),
    "flow": (("pusht-flow",), "weights=[1]"),
    "convex": (("pusht-diffusion", "pusht-flow"), "weights=[0.5,0.5]"),
}


def operators(task: str, runs: Path) -> None:
    pair = (f"{task}-diffusion", f"{task}-flow")
    for name, keys in OPERATORS.items():
        run("evaluate", runs / f"operators-{task}-{name}", pair, f"env={task}", "weights=[0.5,0.5]", *keys, *KEYS)


def best(runs: Path) -> None:
    print("| PushT | one chunk: success % | best of 4 | difference, points | p (McNemar) |\n|---|---|---|---|---|")
    for name in WHO:
        (one, before), (four, after) = (episodes(runs, name, count, 400, 600_000, str(count)) for count in (1, 4))
        print(f"| {name} | {one} | {four} | {apart(after, before)} |")
    print("\n| PushT, best of 4 | success % | convex less this, points | p (McNemar) |\n|---|---|---|---|")
    rows = {name: episodes(runs, name, 4, 1000, 700_000, "again") for name in WHO}
    for name, (four, won) in rows.items():
        print(f"| {name} | {four} | {'|' if name == 'convex' else apart(rows['convex'][1], won)} |")


def episodes(runs: Path, name: str, candidates: int, count: int, seed: int, what: str) -> tuple[str, list[bool]]:
    """Success in percent with its interval, and episode by episode."""
    (policies, weights), folder = WHO[name], runs / f"best-pusht-{name}-{what}"
    keys = (weights, f"sampler.candidates={candidates}", f"episodes={count}", f"seed={seed}", "engine.workers=1")
    summary = run("evaluate", folder, policies, "env=pusht", *keys)
    rows = sorted(read_rows(folder / "episodes.jsonl"), key=lambda row: row.seed)
    return percent(summary), [row.success for row in rows]


def apart(after: Sequence[bool], before: Sequence[bool]) -> str:
    low, high = paired_difference(after, before)
    difference = (sum(after) - sum(before)) / len(after)
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] | {mcnemar(after, before):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pusht", "lift", "best"))
    parser.add_argument("--runs", type=Path, required=True)
    chosen = parser.parse_args()
    if chosen.what == "best":
        best(chosen.runs)
    else:
        operators(chosen.what, chosen.runs)


if __name__ == "__main__":
    main()
