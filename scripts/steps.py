"""Steps against success: every sampler and speed-up, each policy of a pair alone and their composition.

    python scripts/steps.py run pusht --runs FOLDER            # hours; a finished cell is only read
    python scripts/steps.py page --runs FOLDER --out docs/results/steps

A cell is a `gpc evaluate` of 100 episodes on seeds 300000 to 300099, where no weight was chosen and nothing else is reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tables import run

EPISODES, SEED = 100, 300000
EVALUATIONS = (1, 2, 3, 5, 8, 16, 50, 100)
METHODS = {"pusht": ("dpmpp_2m", "euler", "ancestral", "heun", "renoise"), "lift": ("dpmpp_2m", "ancestral", "euler")}


class Cell(NamedTuple):
    """One evaluation: `keys` are the sampler's beside method and steps."""

    method: str
    steps: int
    members: tuple[str, ...]
    keys: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.method, str(self.steps), *self.keys, *self.members]).replace("=", "-")


def cells(task: str) -> Iterator[Cell]:
    pair = (f"{task}-diffusion", f"{task}-flow")
    for method in METHODS[task]:
        for asked in EVALUATIONS:
            steps = (asked + 1) // 2 if method == "heun" else asked  # two evaluations a step, one in the last
            for members in (pair, pair[:1], pair[1:]):
                yield Cell(method, steps, members)


def measure(task: str, folder: Path) -> None:
    for cell in cells(task):
        weights = ",".join(["0.5"] * 2 if len(cell.members) > 1 else ["1"])
        keys = [f"env={task}", f"sampler={cell.method}", f"sampler.steps={cell.steps}", f"weights=[{weights}]"]
        keys += [f"sampler.{key}" for key in cell.keys]
        keys += [f"episodes={EPISODES}", f"seed={SEED}", "engine.workers=1"]
        run("evaluate", folder / task / cell.name, cell.members, *keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "page"))
    parser.add_argument("task", nargs="?", choices=("pusht", "lift"))
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.action == "run":
        measure(chosen.task, chosen.runs)


if __name__ == "__main__":
    main()
