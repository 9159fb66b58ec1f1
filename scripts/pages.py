"""Write the tables and figures under docs/results, and the cards' measured figures, from docs/results/evidence.

    python scripts/pages.py            # write
    python scripts/pages.py --check    # compare only; exit status 1 if something differs
    python scripts/pages.py --add docs/results/evidence/STUDY.json RUN [RUN ...]    # add finished runs to a study first

A page marks what is generated: from `<!-- generated: NAME -->` to `<!-- end -->`; the rest is written by hand. A figure holds
the digest of its data, which is what --check compares.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import paper
import search_study
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats
from tables import (
    ROOT,
    best_of_table,
    less_table,
    operators_table,
    pair_of,
    parents_of,
    parents_table,
    row_weights_table,
    settings_table,
    short,
    simplex_table,
    winners_table,
)

from gpc.disk import write_atomically
from gpc.inference.settings import Sampling
from gpc.policies.bundled import BUNDLED, CARD
from gpc.results.evidence import Evidence, write_evidence
from gpc.results.figures import png, weight_plot
from gpc.results.leaderboard import Run
from gpc.results.run_folder import read_json

PAGES = ROOT / "docs/results"
EVIDENCE, FIGURES = PAGES / "evidence", PAGES / "figures"
BLOCK = re.compile(r"(<!-- generated: ([^>\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
DIGEST = "Evidence"  # the text of a PNG file that holds the digest of its data
WORDS = ("schema_version", "verdict", "denoising_error")  # of a summary: no part of its figure
TASKS = ("pusht", "lift", "can", "square")
OPERATORS = {
    "first": "diffusion alone",
    "second": "flow alone",
    "convex": "convex",
    "or": "OR",
    "and": "AND",
    "average": "average of actions",
    "best": "best of 4 (medoid) of the convex sum",
}

Lines = list[str]


@cache
def study(name: str) -> Evidence:
    return Evidence(EVIDENCE / f"{name}.json")


@cache
def run(name: str, of: str) -> Run:
    return study(of).run(name)


def searches(name: str, task: str) -> list[Run]:
    """Return the searches of a study on a task, in the order of its policies."""
    runs = [run(key, name) for key, recorded in study(name).runs.items() if recorded.winner is not None]
    return [search for search in runs if search.summary["policies"][-1].startswith(f"{task}-")]


def curves(name: str, task: str) -> Lines:
    lines = []
    for search in searches(name, task):
        lines += [f"`{search.path.name}`", "", f"![{pair_of(search.summary)}](figures/{search.path.name}.png)", ""]
    return lines[:-1]


def few_steps() -> Lines:
    return settings_table({f"{steps}": run(f"beso-{steps}-steps", "pusht") for steps in (3, 4, 5)}, "steps")


def operators() -> Lines:
    columns = {task: {key: run(f"operators-{task.lower()}-{key}", "operators") for key in OPERATORS}
               for task in ("PushT", "Lift")}  # fmt: skip
    return operators_table(OPERATORS, columns)


def best_of() -> Lines:
    names = {f"PushT, {member}": f"best-pusht-{member}" for member in ("diffusion", "flow", "convex")}
    names["Lift, diffusion"] = "best-lift-diffusion"
    return best_of_table(
        {key: (run(f"{name}-1", "operators"), run(f"{name}-4", "operators")) for key, name in names.items()}
    )


def best_again() -> Lines:
    rows = {member: run(f"best-pusht-{member}-again", "operators") for member in ("diffusion", "flow", "convex")}
    return less_table("PushT, best of 4", rows["convex"], rows)


def row_weights() -> Lines:
    return row_weights_table({
        "PushT, diffusion + flow | by noise level, one edge at sigma 1": run("pusht-scheduled", "operators"),
        "Lift, diffusion + flow | by dimension, arm and gripper": run("lift-split", "operators"),
    })  # fmt: skip


def three() -> Lines:
    others = {name: run(f"pusht-three-{name}", "three-policies") for name in ("racing", "tpe")}
    return simplex_table(run("pusht-diffusion-flow-beso", "three-policies"), others)


@cache
def regrets(name: str, of: str) -> tuple[list[search_study.Recording], dict[str, Any]]:
    content = read_json(EVIDENCE / f"{name}.json")
    return [search_study.record(run(key, of)) for key in content["settings"]["runs"]], content


def diagnoses() -> Lines:
    """Return predicted and measured gains.

    Of two searches of a pair, that with more episodes counts.
    """
    gains: dict[frozenset[str], tuple[int, float]] = {}
    for name in ("pusht", "robomimic", "search"):
        for search in (search for task in TASKS for search in searches(name, task)):
            summary = search.summary
            spent = sum(c["n_episodes"] for c in summary["candidates"])
            pair = frozenset(summary["policies"])
            gains[pair] = max(gains.get(pair, (0, 0.0)), (spent, summary["pc_success_gain"]))
    lines = [
        "| pair | s | largest disagreement | predicted weights | predicted gain, % | measured gain, points |",
        "|---" * 6 + "|",
    ]
    both = []
    for diagnosis in read_json(EVIDENCE / "diagnoses.json")["diagnoses"]:
        names, gain = diagnosis["policies"], gains.get(frozenset(diagnosis["policies"]))
        both += [(diagnosis["pc_gain"], gain[1])] if gain else []
        cells = [f"{names[0].partition('-')[0]}: {' + '.join(map(short, names))}", f"{diagnosis['seconds']:.0f}"]
        cells += [f"{diagnosis['disagreement']:.3f}", ", ".join(f"{w:.2f}" for w in diagnosis["weights"])]
        cells += [f"{diagnosis['pc_gain']:.1f}", f"{gain[1]:+.1f}" if gain else ""]
        lines.append(f"| {' | '.join(cells)} |")
    test = stats.spearmanr(*zip(*both, strict=True))
    text = f"Rank correlation (Spearman) of predicted and measured gain over {len(both)} pairs: "
    return [*lines, "", f"{text}{test.statistic:+.2f}, p = {test.pvalue:.2g}."]


BLOCKS: dict[str, Callable[[], Lines]] = {
    "few steps": few_steps,
    "larger run": lambda: winners_table([run("pusht-flow-image-200", "search")]),
    "beside the paper": lambda: paper.beside([s for task in paper.TASKS for s in searches("robomimic", task)]),
    "findings": lambda: paper.findings([s for task in paper.TASKS for s in searches("robomimic", task)]),
    "operators": operators,
    "best of 4": best_of,
    "best of 4 again": best_again,
    "weights in rows": row_weights,
    "three policies": three,
    "regrets": lambda: search_study.lines_of(*regrets("regrets", "search")),
    "regrets of three": lambda: search_study.lines_of(*regrets("regrets-three", "three-policies")),
    "diagnoses": diagnoses,
}
for _name, _tasks in (("pusht", ("pusht",)), ("robomimic", ("lift", "can", "square"))):
    for _task in _tasks:
        BLOCKS[f"{_task} parents"] = lambda n=_name, t=_task: parents_table(searches(n, t))
        BLOCKS[f"{_task} winners"] = lambda n=_name, t=_task: winners_table(searches(n, t))
        BLOCKS[f"{_task} curves"] = partial(curves, _name, _task)


def figures() -> dict[str, tuple[Any, Callable[[], Figure]]]:
    """Return the data and the drawing of every figure, by file name."""
    drawn = [*searches("pusht", "pusht"), *(s for task in paper.TASKS for s in searches("robomimic", task))]
    drawn += [run("pusht-flow-image-200", "search"), run("pusht-diffusion-flow-beso", "three-policies")]
    plots: dict[str, tuple[Any, Callable[[], Figure]]] = {}
    for search in drawn:
        data = {key: value for key, value in search.summary.items() if key not in WORDS}
        plots[search.path.name] = data, partial(weight_plot, search.summary)
    for name, of in (("regrets", "search"), ("regrets-three", "three-policies")):
        recordings, content = regrets(name, of)
        plots[name] = content, partial(search_study.draw, recordings, search_study.results_of(content))
    return plots


def digest(data: Any) -> str:
    """Return a digest of plain data, in which numbers have 6 digits."""
    return hashlib.sha256(json.dumps(_rounded(data), sort_keys=True).encode()).hexdigest()


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return f"{data:.6g}"
    if isinstance(data, Mapping):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(item) for item in data] if isinstance(data, list | tuple) else data


def rebuilt(text: str) -> str:
    """Return a page with every generated block made anew."""

    def block(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise SystemExit(f"no block is named {match[2]!r}; there are {', '.join(BLOCKS)}")
        return f"{match[1]}\n{chr(10).join(BLOCKS[match[2]]())}\n\n{match[3]}"

    return BLOCK.sub(block, text)


def pages(write: bool) -> list[Path]:
    """Return the pages that differ from the evidence, after writing them if asked to."""
    old = {path: path.read_text() for path in sorted(PAGES.glob("*.md"))}
    new = {path: rebuilt(text) for path, text in old.items()}
    differing = [path for path, text in new.items() if text != old[path]]
    for path in differing if write else ():
        write_atomically(path, new[path])
    return differing


def drawings(write: bool) -> list[Path]:
    """Return the figures that differ from the evidence; draw them if asked to."""
    differing = []
    for name, (data, draw) in figures().items():
        path = FIGURES / f"{name}.png"
        if not path.exists() or _digest_of(path) != digest(data):
            differing.append(path)
            if write:
                write_atomically(path, png(draw(), {DIGEST: digest(data)}))
    unknown = [path for path in FIGURES.glob("*") if path.stem not in figures()]
    for path in unknown if write else ():
        path.unlink()
    return differing + unknown


def _digest_of(path: Path) -> str | None:
    with Image.open(path) as picture:
        return picture.info.get(DIGEST)


def cards(write: bool) -> list[Path]:
    """Return the cards whose measured figures differ, after writing them if asked to."""
    sampler, differing = Sampling(), []
    for name, task in (("pusht", "pusht"), *(("robomimic", task) for task in paper.TASKS)):
        for policy, measured in parents_of(searches(name, task)).items():
            path = BUNDLED / policy / CARD
            if not path.exists():
                continue
            card = json.loads(path.read_text())
            figures = {"env": task, "sampler": f"{sampler.method}, {sampler.steps} steps", **measured}
            if _rounded(card.get("measured")) != _rounded(figures):
                differing.append(path)
                if write:
                    write_atomically(path, json.dumps(card | {"measured": figures}, indent=1) + "\n")
    return differing


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--add", nargs="+", type=Path, metavar=("STUDY.json", "RUN"), help="add runs to a study first")
    args = parser.parse_args(argv)
    if args.add:
        write_evidence(args.add[0], args.add[1:])
    differing = [path for part in (pages, drawings, cards) for path in part(not args.check)]
    for path in differing:
        print(f"{path.relative_to(ROOT)}: {'differs from the evidence' if args.check else 'written'}")
    return int(args.check and bool(differing))


if __name__ == "__main__":
    raise SystemExit(main())
