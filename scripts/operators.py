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

from gpc.results.run_folder import read_rows
from gpc.results.stats import mcnemar, paired_difference

OPERATORS = {
    "average": ("composer=average",),
    "best": ("composer=convex", "sampler.candidates=4"),
    "convex": ("composer=convex",),
    "or": ("composer=or",),
    "and": ("composer=and",),
}
KEYS = ("sampler=ancestral", "sampler.steps=50", "episodes=100", "seed=200000", "engine.workers=1")

WHO = {"diffusion": "weights=[1]", "flow": "weights=[1]", "convex": "weights=[0.5,0.5]"}


def operators(task: str, runs: Path) -> None:
    pair = (f"{task}-diffusion", f"{task}-flow")
    for name, keys in OPERATORS.items():
        run("evaluate", runs / f"operators-{task}-{name}", pair, f"env={task}", "weights=[0.5,0.5]", *keys, *KEYS)


def best(runs: Path) -> None:
    print("| | one chunk: success % | best of 4 | difference, points | p (McNemar) |\n|---|---|---|---|---|")
    for task, name, count in (*(("pusht", name, 400) for name in WHO), ("lift", "diffusion", 200)):
        (one, before), (four, after) = (episodes(runs, task, name, k, count, 600_000, str(k)) for k in (1, 4))
        print(f"| {task}, {name} | {one} | {four} | {apart(after, before)} |")
    print("\n| PushT, best of 4 | success % | convex less this, points | p (McNemar) |\n|---|---|---|---|")
    rows = {name: episodes(runs, "pusht", name, 4, 1000, 700_000, "again") for name in WHO}
    for name, (four, won) in rows.items():
        print(f"| {name} | {four} | {'|' if name == 'convex' else apart(rows['convex'][1], won)} |")


def episodes(
    runs: Path, task: str, name: str, candidates: int, count: int, seed: int, what: str
) -> tuple[str, list[bool]]:
    """Success in percent with its interval, and episode by episode."""
    folder = runs / f"best-{task}-{name}-{what}"
    policies = [f"{task}-{member}" for member in (("diffusion", "flow") if name == "convex" else (name,))]
    keys = (WHO[name], f"sampler.candidates={candidates}", f"episodes={count}", f"seed={seed}", "engine.workers=1")
    summary = run("evaluate", folder, policies, f"env={task}", *keys)
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
