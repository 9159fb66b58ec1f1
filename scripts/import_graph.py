"""Draw the imports between the folders of gpc/.

    python scripts/import_graph.py --out docs/imports.svg

A folder may import the folders before it in `FLOW` only; tests/test_layout.py holds that.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

PACKAGE = Path(__file__).parents[1] / "gpc"
FLOW = (
    ("score", "noise levels, denoisers, samplers: one coordinate"),
    ("policy", "what a policy is, and views of one"),
    ("composition", "several policies as one: alignment, composers, steering"),
    ("inference", "an observation becomes a chunk of actions"),
    ("rollout", "environments, simulator processes, the engine"),
    ("weights", "the searches for weights"),
    ("results", "run folders, statistics, reports"),
    ("serve", "a policy, or a simulator, for other processes"),
    ("bridge", "the control loop on a robot"),
    ("commands", "gpc COMMAND, and the same from Python"),
    ("testing", "contracts as checks"),
)
"""The folders in the order of the data, and what each holds."""

Edges = Mapping[tuple[str, str], int]
"""(importing folder, imported folder) -> number of importing files."""


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers() -> dict[tuple[str, str], list[str]]:
    """Return the files behind each pair (importing folder, imported folder) of gpc/."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    pairs: dict[tuple[str, str], set[str]] = {}
    for path in PACKAGE.glob("*/**/*.py"):
        folder = path.relative_to(PACKAGE).parts[0]
        for module in imports(path):
            package, _, rest = module.partition(".")
            imported = rest.partition(".")[0]
            if package == "gpc" and imported in folders - {folder}:
                pairs.setdefault((folder, imported), set()).add(str(path.relative_to(PACKAGE)))
    return {pair: sorted(files) for pair, files in sorted(pairs.items())}


def implied(edges: Edges) -> set[tuple[str, str]]:
    """Return the pairs that a longer way of other pairs connects, too."""
    below: dict[str, set[str]] = {}
    for folder, _ in FLOW:
        direct = {target for source, target in edges if source == folder}
        below[folder] = direct.union(*(below.get(target, set()) for target in direct))
    return {(a, c) for a, c in edges if any((a, b) in edges and c in below.get(b, set()) for b, _ in FLOW)}


def draw(edges: Edges) -> Figure:
    """Return the picture: a row for each folder, arrows as wide as their files."""
    row = {name: i for i, (name, _) in enumerate(FLOW)}
    faint = implied(edges)
    figure = Figure(figsize=(9.5, 7.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-5.2, 8.8), ylim=(-1.2, len(FLOW) - 0.4))
    axes.axis("off")
    for name, content in FLOW:
        box = {"boxstyle": "round,pad=0.35", "fc": "#eef3f8", "ec": "#2a6fa8"}
        axes.text(0, row[name], f"{name:^11}", ha="center", va="center", family="monospace", weight="bold", bbox=box)
        axes.text(1.5, row[name], content, va="center", color="#333", size=10)
    for pair, count in edges.items():
        start, end = row[pair[0]], row[pair[1]]
        colour = "#c33" if start < end else "#9dbbd4" if pair in faint else "#1d5684"
        arrow = FancyArrowPatch(
            (-1.0, start - 0.12), (-1.0, end + 0.12), connectionstyle=f"arc3,rad={0.42 if start > end else -0.42}",
            arrowstyle="-|>", mutation_scale=8 + count, lw=0.6 + 0.35 * count, color=colour, shrinkA=0, shrinkB=0,
            zorder=1 if pair in faint else 2,
        )  # fmt: skip
        arrow.set_gid("-".join(pair))
        axes.add_patch(arrow)
    legend = "Arrow: imports, as wide as its number of files. Light: a longer way of arrows connects the two as well."
    axes.text(-5.0, -0.95, legend, size=9, color="#333", va="center")
    return figure


def edges() -> dict[tuple[str, str], int]:
    """Return the number of importing files of each pair."""
    return {pair: len(files) for pair, files in importers().items()}


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    with matplotlib.rc_context({"svg.hashsalt": "gpc", "font.family": "DejaVu Sans"}):
        draw(edges()).savefig(parser.parse_args().out, metadata={"Date": None})


if __name__ == "__main__":
    main()
