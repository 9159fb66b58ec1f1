"""What a person reads: the table in the terminal, the weight curve, the video and a self-contained report.html."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Column, Table

from gpc.errors import InputError
from gpc.record import read_json

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } .verdict { font-size: 1.15rem; border-left: 4px solid #2a6; padding-left: 1rem }
img, video { max-width: 100% } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem }
"""
MAX_VIDEO_BYTES = 8_000_000


def rows_of(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(name, phase, figures) of every line of the table, in order."""
    if summary["kind"] == "evaluation":
        return [(f"{' + '.join(summary['policies'])} {_mixture(summary['weights'])}", "evaluate", summary)]
    if summary["kind"] == "comparison":
        return [(side["name"], "compare", side) for side in summary["sides"]]
    curve = [(_mixture(figures["weights"]), "search", figures) for figures in summary["candidates"]]
    parents = [(parent["name"], "report", parent) for parent in summary["parents"]]
    return [*curve, *parents, (f"winner {_mixture(summary['winner']['weights'])}", "report", summary["winner"])]


def table(summary: Mapping[str, Any]) -> Table:
    """The summary as a table for the terminal."""
    shown = Table(
        Column("weights", no_wrap=True), "seeds", "episodes", "success % (95 % interval)", "score (95 % interval)"
    )
    before = ""
    for name, phase, figures in rows_of(summary):
        if before and phase != before:
            shown.add_section()
        before = phase
        shown.add_row(name, *_cells(phase, figures))
    return shown


def print_summary(path: Path, console: Console) -> None:
    """Print a run folder's table and verdict."""
    summary = read_json(path / "summary.json")
    console.print(table(summary))
    if "verdict" in summary:
        console.print(summary["verdict"], highlight=False)
    if summary["infrastructure_errors"]:
        count = summary["infrastructure_errors"]
        console.print(
            f"{count} simulator breakdowns; their episodes were run again and are not failures", highlight=False
        )


def weight_curve(summary: Mapping[str, Any], path: Path) -> None:
    """The success over the weights with its intervals, parents and winner marked, as a PNG.

    Two policies give a curve over the first one's weight, more a bar for each candidate. The winner's and the parents'
    results on report seeds stand beside the search's: the best of a curve looks better than it is.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the weight curve needs matplotlib; pip install 'gpc[report]'") from None

    candidates = summary["candidates"]
    two = len(summary["policies"]) == 2
    xs = [c["weights"][0] for c in candidates] if two else list(range(len(candidates)))
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=150)
    axes = figure.subplots()
    low, high = ([c["pc_success_ci95"][i] for c in candidates] for i in (0, 1))
    middle = [c["pc_success"] for c in candidates]
    n = candidates[0]["n_episodes"]
    axes.fill_between(xs, low, high, alpha=0.15, color="C0", label="95 % Wilson interval", linewidth=0)
    axes.plot(xs, middle, "o-", color="C0", label=f"search seeds, {n} episodes each")
    winner = summary["winner"]
    report = [(p, "s", "C1", f"{p['name']} alone") for p in summary["parents"]]
    for figures, marker, color, label in [*report, (winner, "*", "C2", f"winner {_mixture(winner['weights'])}")]:
        x = xs[[c["weights"] for c in candidates].index(figures["weights"])]
        y, (bottom, top) = figures["pc_success"], figures["pc_success_ci95"]
        bars = [[max(0, y - bottom)], [max(0, top - y)]]
        text = f"{label}, report seeds, {figures['n_episodes']} episodes"
        size = 14 if marker == "*" else 7
        axes.errorbar([x], [y], bars, fmt=marker, color=color, capsize=4, label=text, markersize=size, zorder=3)
    axes.set(ylabel="success, %", ylim=(-2, 102))
    if two:
        a, b = summary["policies"]
        axes.set(xlabel=f"weight of {a}   (the rest: {b})", xlim=(-0.03, 1.03))
    else:
        axes.set_xticks(xs, [_mixture(c["weights"]) for c in candidates], rotation=90, fontsize=6)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best")
    figure.savefig(path)


def video(path: Path, panels: Sequence[tuple[str, Sequence[Any]]], fps: int = 20) -> None:
    """Write an mp4 of several episodes side by side: (title, frames (height, width, 3) uint8) for each panel."""
    import imageio.v2 as imageio
    import numpy as np
    from PIL import Image, ImageDraw

    longest = max(len(frames) for _, frames in panels)
    with imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=16, quality=6) as writer:
        for i in range(longest):
            shown = []
            for title, frames in panels:
                frame = frames[min(i, len(frames) - 1)]
                canvas = Image.new("RGB", (frame.shape[1], frame.shape[0] + 32), "white")
                canvas.paste(Image.fromarray(frame), (0, 32))
                ImageDraw.Draw(canvas).text((6, 9), title, fill="black", font_size=14)
                shown.append(np.asarray(canvas))
            cast(Any, writer).append_data(np.concatenate(shown, axis=1))


def write_report(path: Path) -> Path:
    """Write `report.html` (and `curve.png` for a search) from a run folder's files; returns the page.

    Raises InputError where the folder is not a finished run.
    """
    summary, manifest = read_json(path / "summary.json"), read_json(path / "manifest.json")
    title = (" against " if summary["kind"] == "comparison" else " + ").join(summary["policies"])
    parts = [f"<!doctype html><meta charset=utf-8><title>gpc: {html.escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    if "verdict" in summary:
        parts.append(f"<p class=verdict>{html.escape(summary['verdict'])}</p>")
    if summary["kind"] == "search":
        weight_curve(summary, path / "curve.png")
        parts.append(f'<img alt="success over weights" src="{_data_uri(path / "curve.png", "image/png")}">')
    head = "<tr><th>weights<th>seeds<th>episodes<th>success % (95 % interval)<th>score (95 % interval)</tr>"
    lines = [[name, *_cells(phase, figures)] for name, phase, figures in rows_of(summary)]
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    parts.append(f"<table>{head}{body}</table>")
    clip = path / "episodes.mp4"
    if clip.exists() and clip.stat().st_size < MAX_VIDEO_BYTES:
        parts.append(f'<h2>Episodes</h2><video controls loop muted src="{_data_uri(clip, "video/mp4")}"></video>')
    parts.append(
        f"<p>Simulator breakdowns (run again, not counted as failures): {summary['infrastructure_errors']}.</p>"
    )
    parts.append(f"<h2>Run</h2><pre>{html.escape(_pretty(manifest))}</pre>")
    page = path / "report.html"
    page.write_text("\n".join(parts))
    return page


def _cells(phase: str, figures: Mapping[str, Any]) -> list[str]:
    (low, high), (bottom, top) = figures["pc_success_ci95"], figures["avg_max_reward_ci95"]
    first, last = figures["seeds"]
    return [
        f"{phase} {first} to {last}",
        str(figures["n_episodes"]),
        f"{figures['pc_success']:.1f} ({low:.1f} to {high:.1f})",
        f"{figures['avg_max_reward']:.3f} ({bottom:.3f} to {top:.3f})",
    ]


def _mixture(weights: Sequence[float]) -> str:
    return "[" + ", ".join(f"{w:g}" for w in weights) + "]"


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _pretty(manifest: Mapping[str, Any]) -> str:
    import json

    return json.dumps(manifest, indent=1)
