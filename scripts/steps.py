"""Measure success over the number of sampler steps: every sampler, each policy of a pair alone and their composition.

    python scripts/steps.py run pusht --runs FOLDER            # hours; a finished cell is only read
    python scripts/steps.py run pusht --runs AGAIN --seed 310000 --only dpmpp_2m-8 ancestral-16
    python scripts/steps.py page --runs FOLDER --again AGAIN --out docs/results/steps

A cell is a `gpc evaluate` of 100 episodes on seeds 300000 to 300099, which chose no weight and are used on no other page. The
best settings are run again on seeds of their own.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tables import percent, run, short

from gpc.disk import write_atomically
from gpc.results.run_folder import read_json, read_rows
from gpc.results.stats import mcnemar, paired_difference

EPISODES, SEED = 100, 300000
DEFAULT = ("dpmpp_2m", 8)
EVALUATIONS = (1, 2, 3, 5, 8, 16, 50, 100)
TASKS = ("pusht", "lift")
METHODS = ("dpmpp_2m", "euler", "ancestral", "renoise")
TELEPORT = "teleport=2"
TABLES = "## All together, against the default"


class Cell(NamedTuple):
    """One evaluation; `key` is one more setting of the sampler."""

    method: str
    steps: int
    members: tuple[str, ...]
    key: str = ""

    @property
    def name(self) -> str:
        words = [self.method, str(self.steps), *re.findall(r"[\w-]+", self.key), *self.members]
        return "-".join(words)


def cells(task: str) -> Iterator[Cell]:
    """Yield every sampler, dpmpp_2m with teleport, langevin with four corrections."""
    pair = (f"{task}-diffusion", f"{task}-flow")
    for members in (pair, pair[:1], pair[1:]):
        for method in METHODS:
            for steps in EVALUATIONS:
                yield Cell(method, steps, members)
        for count in EVALUATIONS[1:]:
            yield Cell("dpmpp_2m", count, members, TELEPORT)
        for steps in (1, 2, 4, 10, 20):
            yield Cell("langevin", steps, members)


def measure(task: str, folder: Path, seed: int, only: Sequence[str]) -> None:
    for cell in cells(task):
        if only and f"{cell.method}-{cell.steps}{cell.key}" not in only:
            continue
        weights = ",".join(["0.5"] * 2 if len(cell.members) > 1 else ["1"])
        keys = [f"env={task}", f"sampler={cell.method}", f"sampler.steps={cell.steps}", f"weights=[{weights}]"]
        keys += ["sampler.method={type: teleport, sigma: 2}"] if cell.key else []
        keys += [f"episodes={EPISODES}", f"seed={seed}", "engine.workers=1"]
        run("evaluate", folder / task / cell.name, cell.members, *keys)


def evaluations(cell: Cell) -> int:
    """Return the number of evaluations of every member for a chunk."""
    return {"langevin": 5 * cell.steps - 4}.get(cell.method, cell.steps)


def page(runs: Path, again: Path | None, out: Path) -> None:
    """Write a table of the finished cells, and all policies against the default."""
    head = out.with_suffix(".md").read_text().partition(TABLES)[0]  # by hand
    lines = [head + TABLES, "", *against_default(runs)]
    if again:
        lines += ["Again, on seeds of their own:", "", *against_default(again)]
    for task in TASKS:
        summaries = {cell: read_json(runs / task / cell.name / "summary.json") for cell in finished(task, runs)}
        who = list(dict.fromkeys(cell.members for cell in summaries))
        names = [" + ".join(map(short, members)) for members in who]
        lines += [f"## {task}", ""]
        lines += [f"| sampler | evaluations | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for row in dict.fromkeys(cell._replace(members=()) for cell in summaries):
            cells_ = [summaries.get(row._replace(members=members)) for members in who]
            lines.append(
                f"| {title(row)} | {evaluations(row)} | {' | '.join(percent(s) if s else '' for s in cells_)} |"
            )
        lines.append("")
    write_atomically(out.with_suffix(".md"), "\n".join(lines))


def finished(task: str, runs: Path) -> list[Cell]:
    return [cell for cell in cells(task) if (runs / task / cell.name / "summary.json").exists()]


def against_default(runs: Path) -> list[str]:
    """Return the settings of all policies of both tasks, paired with the default."""
    successes: dict[tuple[str, int], dict[tuple[str, tuple[str, ...]], list[bool]]] = {}
    for task in TASKS:
        for cell in finished(task, runs):
            rows = sorted(read_rows(runs / task / cell.name / "episodes.jsonl"))
            where = (f"{cell.method} {cell.key}".strip(), evaluations(cell))
            successes.setdefault(where, {})[task, cell.members] = [row.success for row in rows]
    default = successes[DEFAULT]
    lines = [
        "| sampler | evaluations | policies | success % | against the default, points | p (McNemar) |",
        "|---" * 6 + "|",
    ]
    for (name, count), setting in successes.items():
        groups = [members for members in default if members in setting]
        if len(groups) < len(default):
            continue
        a, b = (np.concatenate([side[group] for group in groups]) for side in (setting, default))
        low, high = paired_difference(a, b)
        change = f"{100 * (a.mean() - b.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"| {name} | {count} | {len(groups)} | {100 * a.mean():.1f} | {change} | {mcnemar(a, b):.2g} |")
    return [*lines, ""]


def title(cell: Cell) -> str:
    return f"{cell.method} {cell.key}".strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "page"))
    parser.add_argument("task", nargs="?", choices=TASKS)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.action == "run":
        measure(chosen.task, chosen.runs, chosen.seed, chosen.only)
    else:
        page(chosen.runs, chosen.again, chosen.out)


if __name__ == "__main__":
    main()
