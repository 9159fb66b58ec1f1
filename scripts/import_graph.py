"""Draw the imports between the folders of gpc/: python scripts/import_graph.py --out docs/imports.svg

A folder may import folders that stand below it only; tests/test_layout.py holds that.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

PACKAGE = Path(__file__).parents[1] / "gpc"
BOX = {"boxstyle": "round", "fc": "#eef3f8", "ec": "#2a6fa8"}
FLOW = (
    ("score", "noise levels, denoisers, samplers: the one coordinate"),
    ("policy", "what a policy is, and views of one"),
    ("composition", "several policies as one: alignment, composers, steering"),
    ("inference", "an observation becomes a chunk of actions"),
    ("rollout", "environments, simulator processes, the engine"),
    ("weights", "which weights: the searches"),
    ("results", "run folders, statistics, reports"),
    ("serve", "a policy for clients in other processes"),
    ("bridge", "the control loop on a robot"),
    ("commands", "gpc COMMAND, and the same from Python"),
    ("testing", "contracts as checks"),
)
"""The folders in the order of the data, and what each holds."""


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, `from a import b` as a.b, type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_imports() -> dict[tuple[str, str], list[str]]:
    """Return the files behind each pair (importing folder, imported folder) of gpc/."""
    folders = {name for name, _ in FLOW}
    found: dict[tuple[str, str], list[str]] = {}
    for path in sorted(PACKAGE.glob("*/*.py")):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "gpc" and len(parts) > 1 and parts[1] in folders - {path.parent.name}:
                found.setdefault((path.parent.name, parts[1]), []).append(f"{path.parent.name}/{path.name}")
    return found


def draw() -> Figure:
    """Return the picture: a row for each folder, an arrow for each pair, as wide as its number of files."""
    place = {name: i for i, (name, _) in enumerate(FLOW)}
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-1.2, 9), ylim=(-0.7, len(FLOW) - 0.3))
    axes.axis("off")
    for name, what in FLOW:
        axes.text(
            0,
            place[name],
            name,
            ha="center",
            va="center",
            weight="bold",
            bbox={"boxstyle": "round", "fc": "#eef3f8", "ec": "#2a6fa8"},
        )
        axes.text(5.1, place[name], what, va="center", color="#444", size=9)
    files = {pair: len(Counter(paths)) for pair, paths in folder_imports().items()}
    for (source, target), count in files.items():
        start, end = place[source], place[target]
        axes.add_patch(
            FancyArrowPatch(
                (0.9, start), (0.9, end), connectionstyle=f"arc3,rad={-0.45 if start > end else 0.45}", arrowstyle="-|>",
                mutation_scale=9, lw=0.5 + 0.25 * count, color="#2a6fa8" if start > end else "#c33", alpha=0.6,
            )
        )  # fmt: skip
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    draw().savefig(parser.parse_args().out, metadata={"Date": None})


if __name__ == "__main__":
    main()
