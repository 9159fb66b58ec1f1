"""The operators of a composition beside each other: 100 report seeds each, in docs/results/runs/operators-*.

    python scripts/operators.py pusht --runs docs/results/runs

All with `sampler=ancestral sampler.steps=50`, which or and and need, so that the sampler is no part of a difference. A finished
run is only read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tables import run

OPERATORS = {
    "average": ("composer=average",),
    "best": ("composer=convex", "sampler.candidates=4"),
    "convex": ("composer=convex",),
    "or": ("composer=or",),
    "and": ("composer=and",),
}
KEYS = ("sampler=ancestral", "sampler.steps=50", "episodes=100", "seed=200000", "engine.workers=1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("pusht", "lift"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=OPERATORS, default=list(OPERATORS))
    chosen = parser.parse_args()
    pair = (f"{chosen.task}-diffusion", f"{chosen.task}-flow")
    for name in chosen.only:
        folder = chosen.runs / f"operators-{chosen.task}-{name}"
        run("evaluate", folder, pair, f"env={chosen.task}", "weights=[0.5,0.5]", *OPERATORS[name], *KEYS)


if __name__ == "__main__":
    main()
