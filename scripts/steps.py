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


CHEAPER = ("teleport=2", "warm=1")
CHEAP_EVALUATIONS = (1, 2, 3, 5, 8, 16)


class Cell(NamedTuple):
    """One evaluation: `key` is a further one of the sampler's."""

    method: str
    steps: int
    members: tuple[str, ...]
    key: str = ""

    @property
    def name(self) -> str:
        return "-".join(
            filter(
                None,
                [
                    self.method,
                    str(self.steps),
                    self.key.replace("=", "-").replace(": ", "-").strip("{}"),
                    *self.members,
                ],
            )
        )


def cells(task: str) -> Iterator[Cell]:
    """Every sampler, then langevin with four corrections, then what makes dpmpp_2m cheaper."""
    pair = (f"{task}-diffusion", f"{task}-flow")
    for members in (pair, pair[:1], pair[1:]):
        for method in METHODS[task]:
            for asked in EVALUATIONS:
                yield Cell(method, (asked + 1) // 2 if method == "heun" else asked, members)
        for key in CHEAPER:
            for asked in CHEAP_EVALUATIONS:
                if key != "teleport=2" or asked > 1:
                    yield Cell("dpmpp_2m", asked, members, key)
        for steps in (1, 2, 4, 10, 20):
            yield Cell("langevin", steps, members)
    for asked in CHEAP_EVALUATIONS[1:]:
        yield Cell("dpmpp_2m", asked, pair, f"reuse={{{pair[0]}: 2}}")


def measure(task: str, folder: Path) -> None:
    for cell in cells(task):
        weights = ",".join(["0.5"] * 2 if len(cell.members) > 1 else ["1"])
        keys = [f"env={task}", f"sampler={cell.method}", f"sampler.steps={cell.steps}", f"weights=[{weights}]"]
        keys += [f"sampler.{cell.key}"] if cell.key else []
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
