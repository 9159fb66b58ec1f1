"""What a person reads: tables in the terminal, the video, a self-contained page of one run or of several."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from gpc.disk import write_atomically
from gpc.figures import error_plot, outcome_matrix, png, progress_plot, weight_plot
from gpc.store import write_store
from gpc.study import OUTCOMES, RANKED, Run, Standing, entries, leaderboard, outcomes, read_run, searched, tasks
from gpc.summary import mixture, read_summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left } .verdict { font-size: 1.15rem; border-left: 4px solid #2a6; padding-left: 1rem }
img, video { max-width: 100% } pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem }
"""
MAX_VIDEO_BYTES = 8_000_000
HEAD = ("weights", "seeds", "episodes", "success % (95 % interval)", "score (95 % interval)")
LEADERBOARD = (
    "policy or mixture", "successes", "% (95 % interval)", "gain over best parent", "p", "p, best",  # also in the terminal
    "best parent", "score", "sampler", "runs",
)  # fmt: skip
NEAR_BEST = (
    "● cannot be told from the first line: exact paired tests at 5 % divided by their number (Bonferroni), so that the truly best "
    "is among these but for a chance of 5 %. p: McNemar's exact test against the best parent, on shared seeds."
)


def rows_of(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(name, phase, figures) of every line of the table, in order."""
    if summary["kind"] == "evaluation":
        return [(f"{' + '.join(summary['policies'])} {mixture(summary['weights'])}", "evaluate", summary)]
    if summary["kind"] == "comparison":
        return [(side["name"], "compare", side) for side in summary["sides"]]
    curve = [(mixture(figures["weights"]), "search", figures) for figures in summary["candidates"]]
    parents = [(parent["name"], "report", parent) for parent in summary["parents"]]
    return [*curve, *parents, (f"winner {mixture(summary['winner']['weights'])}", "report", summary["winner"])]


def table(summary: Mapping[str, Any]) -> Table:
    """The summary as a table for the terminal."""
    shown = Table(Column(HEAD[0], no_wrap=True), *HEAD[1:])
    before = ""
    for name, phase, figures in rows_of(summary):
        if before and phase != before:
            shown.add_section()
        before = phase
        shown.add_row(name, *_cells(phase, figures))
    return shown


def print_summary(path: Path, console: Console) -> None:
    """Print a run folder's table and verdict."""
    summary = read_summary(path)
    console.print(table(summary))
    if "verdict" in summary:
        console.print(summary["verdict"], highlight=False)
    if "denoising_error" in summary:
        console.print(summary["denoising_error"]["verdict"], highlight=False)
    if summary["infrastructure_errors"]:
        count = summary["infrastructure_errors"]
        console.print(
            f"{count} simulator breakdowns; their episodes were run again and are not failures", highlight=False
        )


def write_report(path: Path) -> Path:
    """Write `report.html` (and the figures of a search as PNG files) from a run folder's files; returns the page.

    Raises InputError where the folder is not a finished run.
    """
    run = read_run(path)
    summary, search = run.summary, run.summary["kind"] == "search"
    parts = _opening((" against " if summary["kind"] == "comparison" else " + ").join(summary["policies"]))
    if "verdict" in summary:
        parts.append(f"<p class=verdict>{html.escape(summary['verdict'])}</p>")
    if search:
        parts.append(_picture("success over the weights", weight_plot(summary), path / "curve.png"))
    if errors := summary.get("denoising_error"):
        parts.append(f"<h2>Denoising errors</h2><p>{html.escape(errors['verdict'])}</p>")
        parts.append(_picture("errors over sigma", error_plot(errors), path / "errors.png"))
    parts.append(_table(HEAD, [[name, *_cells(phase, figures)] for name, phase, figures in rows_of(summary)]))
    if search:
        parts += _seeds(run, path / "outcomes.png")
        parts += _progress({path.name: run}, path / "progress.png")
    clip = path / "episodes.mp4"
    if clip.is_file() and clip.stat().st_size < MAX_VIDEO_BYTES:
        source = _data_uri(clip.read_bytes(), "video/mp4")
        parts.append(f'<h2>Episodes</h2><video controls loop muted src="{source}"></video>')
    parts.append(
        f"<p>Simulator breakdowns (run again, not counted as failures): {summary['infrastructure_errors']}.</p>"
    )
    parts.append(f"<h2>Run</h2><pre>{html.escape(json.dumps(run.manifest, indent=1))}</pre>")
    page = path / "report.html"
    write_atomically(page, "\n".join(parts))
    return page


def write_study(paths: Sequence[Path], page: Path, store: Path, console: Console) -> None:
    """Several runs on one page, a leaderboard for each task first, and in one store; the leaderboards are printed, too."""
    runs = [read_run(path) for path in dict.fromkeys(paths)]
    write_store(runs, store)
    parts = _opening(f"A study of {len(runs)} runs")
    for task, group in tasks(runs).items():
        board = leaderboard(entries(group))
        left_out = sum(row.phase in RANKED and row.seed in searched(group) for run in group for row in run.rows)
        notes = [NEAR_BEST, f"{left_out} episodes on seeds that a search has used are left out."][: 1 + (left_out > 0)]
        lines = [_standing(standing) for standing in board]
        shown = Table(*LEADERBOARD[:6], title=task)
        for line in lines:
            shown.add_row(*line[:6])
        console.print(shown)
        console.print(*notes, highlight=False)
        parts += [f"<h2>{html.escape(task)}</h2>", _table(LEADERBOARD, lines), f"<p>{html.escape(' '.join(notes))}</p>"]
        parts += _progress({str(run.path): run for run in group if run.summary["kind"] == "search"})
        for run in group:
            parts.append(f"<h2>{html.escape(str(run.path))}</h2><p class=verdict>{html.escape(_said(run.summary))}</p>")
            if run.summary["kind"] == "search":
                parts += [_picture("success over the weights", weight_plot(run.summary)), *_seeds(run)]
    write_atomically(page, "\n".join(parts))


def _standing(standing: Standing) -> list[str]:
    entry, parent, (low, high) = standing.entry, standing.parent, standing.ci95
    n, k, (sampler, _) = len(entry.rows), entry.successes, json.loads(entry.setting)
    gain, p_value, other = "", "", ""
    if parent:
        bottom, top = parent.ci95
        gain = f"{100 * parent.difference:+.1f} ({100 * bottom:+.1f} to {100 * top:+.1f})"
        p_value, other = f"{parent.p_value:.2g}", f"{parent.other.name}, {parent.n} shared seeds"
    return [
        f"{'● ' if standing.near_best else ''}{entry.name}",
        f"{k}/{n}",
        f"{100 * k / n:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        gain,
        p_value,
        f"{standing.p_best:.2g}",
        other,
        f"{entry.score:.3f}",
        f"{sampler['method']}, {sampler['steps']} steps",
        ", ".join(path.name for path in entry.runs),
    ]


def _said(summary: Mapping[str, Any]) -> str:
    """The verdict, or the figures of an evaluation."""
    if "verdict" in summary:
        return str(summary["verdict"])
    ((name, phase, figures),) = rows_of(summary)
    seeds, episodes, success, score = _cells(phase, figures)
    return f"{name}: {success} % success, score {score}, {episodes} episodes on seeds {seeds}."


def _seeds(run: Run, file: Path | None = None) -> list[str]:
    """The matrix of outcomes, and how many report seeds came out in which way, with episodes to look at."""
    parts = ["<h2>Seeds</h2>", _picture("outcome of every seed under every weights", outcome_matrix(run), file)]
    found = outcomes(run, "report")
    if not found:
        return [*parts, "<p>The winner is a parent: there is no mixture whose outcomes could be counted.</p>"]
    weights = tuple(run.summary["winner"]["weights"])
    episode = {row.seed: i for i, row in enumerate(run.rows) if row.phase == "report" and row.weights == weights}
    lines = []
    for kind in OUTCOMES:
        seeds = [seed for seed, name in found.items() if name == kind]
        lines.append([kind, str(len(seeds)), ", ".join(str(episode[seed]) for seed in seeds[:5])])
    hint = f"gpc replay {run.path} --episode K --video FILE.mp4 shows one of them again."
    return [
        *parts,
        _table(["report seeds", "count", "the mixture's episodes, K"], lines),
        f"<p>{html.escape(hint)}</p>",
    ]


def _progress(runs: Mapping[str, Run], file: Path | None = None) -> list[str]:
    """Nothing where no search ran an episode."""
    known = {name: run for name, run in runs.items() if searched([run])}
    return (
        ["<h2>Progress</h2>", _picture("episodes spent against the best", progress_plot(known), file)] if known else []
    )


def _opening(title: str) -> list[str]:
    name = html.escape(title)
    return [f"<!doctype html><meta charset=utf-8><title>gpc: {name}</title><style>{STYLE}</style>", f"<h1>{name}</h1>"]


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<table><tr>{top}</tr>{body}</table>"


def _picture(alt: str, figure: Figure, file: Path | None = None) -> str:
    content = png(figure)
    if file:
        write_atomically(file, content)
    return f'<img alt="{alt}" src="{_data_uri(content, "image/png")}">'


def _cells(phase: str, figures: Mapping[str, Any]) -> list[str]:
    (low, high), (bottom, top) = figures["pc_success_ci95"], figures["avg_max_reward_ci95"]
    first, last = figures["seeds"]
    return [
        f"{phase} {first} to {last}",
        str(figures["n_episodes"]),
        f"{figures['pc_success']:.1f} ({low:.1f} to {high:.1f})",
        f"{figures['avg_max_reward']:.3f} ({bottom:.3f} to {top:.3f})",
    ]


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
