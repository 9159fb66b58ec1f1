"""Steps against success: every sampler and speed-up, each policy of a pair alone and their composition.

    python scripts/steps.py run pusht --runs FOLDER            # hours; a finished cell is only read
    python scripts/steps.py run pusht --runs AGAIN --seed 310000 --only dpmpp_2m-8 ancestral-16
    python scripts/steps.py page --runs FOLDER --again AGAIN --out docs/results/steps

A cell is a `gpc evaluate` of 100 episodes on seeds 300000 to 300099, where no weight was chosen and nothing else is reported. What
looks best there is looked at again on seeds of its own.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tables import percent, run, short

from gpc.disk import write_atomically
from gpc.results.figures import png
from gpc.results.run_folder import read_json, read_rows
from gpc.results.stats import mcnemar, paired_difference

EPISODES, SEED = 100, 300000
DEFAULT = ("dpmpp_2m", 8)
EVALUATIONS = (1, 2, 3, 5, 8, 16, 50, 100)
TASKS = ("pusht", "lift")
METHODS = ("dpmpp_2m", "euler", "ancestral", "renoise")
TELEPORT = "teleport=2"

PREFACE = """# Steps against success

100 episodes a cell on seeds 300000 to 300099, success in % with Wilson's 95 % interval; weights 0.5, 0.5 where two are named.
No weight was chosen on these seeds. An evaluation asks every member once; langevin has four corrections a level, heun
takes two a step. heun, `sampler.warm` and `sampler.reuse` were removed for what their rows show. A grid of 100 steps snaps to fewer
levels where a policy has 100 trained ones. Made by `scripts/steps.py`.

The default is dpmpp_2m with 8 steps. With at most 8 evaluations no setting is shown to beat it over both tasks and all
policies; euler with 8 is a little above (+2.8 points, +3.2 again on fresh seeds, neither shown). **Twice the price buys more:
`sampler=ancestral`, with its 16 steps, is 8 points above, and again 10 on fresh seeds (p = 9e-6)**, most where a policy alone
wants noise (Lift's diffusion policy: 72 to 94 %). Take it where 16 evaluations a chunk are affordable. More than 16 evaluations
bring nothing in any sampler.

Cheaper than the default, and not shown to be worse: renoise with 5 evaluations and `sampler.teleport=2` with 5, which is worth
its place at 2 to 5 evaluations only (8 evaluations: 5.2 points below the default over all, and 10 and more on Lift's diffusion
policy). A warm start from the chunk before (`warm=1`) is 4.8 points below at 8 evaluations and 7 from 16 on; asking one
member at every second level (`reuse`) saves a quarter of two members' evaluations and costs 8 points at 5. Below 5 evaluations
dpmpp_2m's and heun's second-order steps fail over so wide gaps of sigma (Lift, 3 evaluations: 2 % where euler has 100 %); there
`sampler.teleport=2` or euler serve. Lift's flow policy needs one evaluation.

With 100 episodes an interval is 20 points wide at 50 %, and the largest of so many cells looks better than it is: that is why
the best one was looked at again.
"""


class Cell(NamedTuple):
    """One evaluation: `key` is a further one of the sampler's."""

    method: str
    steps: int
    members: tuple[str, ...]
    key: str = ""

    @property
    def name(self) -> str:
        words = [self.method, str(self.steps), *re.findall(r"[\w-]+", self.key), *self.members]
        return "-".join(words)


def cells(task: str) -> Iterator[Cell]:
    """Every sampler, then dpmpp_2m with teleport, then langevin with four corrections."""
    pair = (f"{task}-diffusion", f"{task}-flow")
    for members in (pair, pair[:1], pair[1:]):
        for method in METHODS:
            for steps in EVALUATIONS:
                yield Cell(method, steps, members)
        for asked in EVALUATIONS[1:]:
            yield Cell("dpmpp_2m", asked, members, TELEPORT)
        for steps in (1, 2, 4, 10, 20):
            yield Cell("langevin", steps, members)


def measure(task: str, folder: Path, seed: int, only: Sequence[str]) -> None:
    for cell in cells(task):
        if only and f"{cell.method}-{cell.steps}{cell.key}" not in only:
            continue
        weights = ",".join(["0.5"] * 2 if len(cell.members) > 1 else ["1"])
        keys = [f"env={task}", f"sampler={cell.method}", f"sampler.steps={cell.steps}", f"weights=[{weights}]"]
        keys += [f"sampler.{cell.key}"] if cell.key else []
        keys += [f"episodes={EPISODES}", f"seed={seed}", "engine.workers=1"]
        run("evaluate", folder / task / cell.name, cell.members, *keys)


def evaluations(cell: Cell) -> int:
    """How often every member is asked for a chunk."""
    return {"langevin": 5 * cell.steps - 4}.get(cell.method, cell.steps)


def page(runs: Path, again: Path | None, out: Path) -> None:
    """A table and a plot of every cell that is finished, and all policies of both tasks against the default."""
    lines = [PREFACE, "## All together, against the default", "", *against_default(runs)]
    if again:
        lines += ["Again, on seeds of their own:", "", *against_default(again)]
    for task in TASKS:
        found = {cell: read_json(runs / task / cell.name / "summary.json") for cell in finished(task, runs)}
        who = list(dict.fromkeys(cell.members for cell in found))
        names = [" + ".join(map(short, members)) for members in who]
        lines += [f"## {task}", "", f"![success over evaluations on {task}](steps-{task}.png)", ""]
        lines += [f"| sampler | evaluations | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for row in dict.fromkeys(cell._replace(members=()) for cell in found):
            seen = [found.get(row._replace(members=members)) for members in who]
            lines.append(f"| {title(row)} | {evaluations(row)} | {' | '.join(percent(s) if s else '' for s in seen)} |")
        lines.append("")
        out.with_name(f"steps-{task}.png").write_bytes(png(plot(found, who)))
    write_atomically(out.with_suffix(".md"), "\n".join(lines))


def finished(task: str, runs: Path) -> list[Cell]:
    return [cell for cell in cells(task) if (runs / task / cell.name / "summary.json").exists()]


def against_default(runs: Path) -> list[str]:
    """Every setting that all policies of both tasks have been measured in, seed by seed against the default."""
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
    for (name, count), own in successes.items():
        groups = [members for members in default if members in own]
        if len(groups) < len(default):
            continue
        a, b = (np.concatenate([side[group] for group in groups]) for side in (own, default))
        low, high = paired_difference(a, b)
        change = f"{100 * (a.mean() - b.mean()):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(f"| {name} | {count} | {len(groups)} | {100 * a.mean():.1f} | {change} | {mcnemar(a, b):.2g} |")
    return [*lines, ""]


def title(cell: Cell) -> str:
    return f"{cell.method} {cell.key}".strip()


def plot(found: Mapping[Cell, Mapping[str, Any]], who: Sequence[tuple[str, ...]]) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, members in zip(figure.subplots(1, len(who), sharey=True), who, strict=True):
        for name in dict.fromkeys(map(title, found)):
            mine = sorted(
                (evaluations(c), s["pc_success"]) for c, s in found.items() if title(c) == name and c.members == members
            )
            if mine:
                axes.plot(*zip(*mine, strict=True), marker="o", markersize=3, label=name)
        axes.set(xscale="log", xlabel="evaluations a chunk", title=" + ".join(map(short, members)))
        axes.set_xticks(EVALUATIONS, labels=map(str, EVALUATIONS))
    figure.axes[0].set_ylabel("success %")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    return figure


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
