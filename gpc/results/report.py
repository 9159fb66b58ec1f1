"""Tables in the terminal, and a self-contained page (`page.html`) of one run or of several."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.table import Column, Table

from gpc.disk import write_atomically
from gpc.errors import GpcError, missing
from gpc.inert import Console, notice, template
from gpc.results.devices import device_of
from gpc.results.figures import NOTEBOOK_DPI, error_plot, outcome_matrix, png, progress_plot, weight_plot
from gpc.results.leaderboard import (
    OUTCOMES,
    RANKED,
    Run,
    Standing,
    entries,
    leaderboard,
    outcomes,
    read_manifest,
    read_run,
    searched,
    tasks,
)
from gpc.results.summary import LEAST, UNREPORTED, mixture, read_summary, reported, with_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_VIDEO_BYTES = 8_000_000
HEAD = ("weights", "episodes", "success %", "score", "seeds", "reward: sum, a step")
LEADERBOARD = (
    "policy or mixture", "successes", "success %", "gain", "p", "p, best",  # in the terminal, too
    "best parent", "score", "sampler", "runs",
)  # fmt: skip
NEAR_BEST = (
    "● is not shown to be worse than the first line: exact paired tests at 5 % divided by their number (Bonferroni), so that the "
    "best entry has this mark with a probability of 95 %. Gain and p (McNemar's exact test): over the best parent, on shared seeds."
)


Block = tuple[Literal["heading", "verdict", "text", "code", "table", "picture", "video"], Any]
"""A part of a page and its content: text; rows of text, the head first; (alternative text, source); source."""


def rows_of(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (name, phase, figures) of every line of the table."""
    if summary["kind"] == "evaluation":
        return [(f"{' + '.join(summary['policies'])} {mixture(summary['weights'])}", "evaluate", summary)]
    if summary["kind"] == "comparison":
        return [(side["name"], "compare", side) for side in summary["sides"]]
    curve = [(mixture(figures["weights"]), "search", figures) for figures in summary["candidates"]]
    parents = [(parent["name"], "report", parent) for parent in summary["parents"]]
    return [*curve, *parents, (f"winner {mixture(summary['winner']['weights'])}", "report", summary["winner"])]


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the summary as a table for the terminal."""
    table = _narrow(HEAD[:4])
    before, seeds = "", dict[str, set[int]]()
    for name, phase, figures in rows_of(summary):
        if before and phase != before:
            table.add_section()
        before = phase
        seeds.setdefault(phase, set()).update(figures["seeds"])
        table.add_row(name, *_cells(phase, figures)[:3])
    ranges = ", ".join(f"{phase} {min(both)} to {max(both)}" for phase, both in seeds.items())
    table.caption = f"seeds: {ranges}; 95 % intervals from {LEAST} episodes on"
    return table


def _narrow(head: Sequence[str], title: str | None = None) -> Table:
    """Return a table for 80 columns, in which names alone are wrapped."""
    columns = [Column(name, no_wrap=True) for name in head[1:]]
    return Table(
        Column(head[0], overflow="fold"),
        *columns,
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def print_summary(path: Path, console: Console) -> None:
    """Print a run folder's table and verdict."""
    summary, device = read_summary(path), device_of(read_manifest(path))
    console.print(summary_table(summary))
    if device:
        console.print(f"device: {device}", soft_wrap=True)
    if "verdict" in summary:
        console.print(summary["verdict"])
    elif not reported(summary):
        console.print(f"note: {UNREPORTED}")
    if "denoising_error" in summary:
        console.print(summary["denoising_error"]["verdict"])
    if summary["infrastructure_errors"]:
        count = summary["infrastructure_errors"]
        console.print(f"{count} simulator failures; their episodes were run again and are no failures of the policy")


def write_report(path: Path) -> Path:
    """Write `report.html`, and the figures of a search as PNG files.

    A part that fails, such as a figure, is one line on the page and on stderr; the rest is still written.

    Args:
        path: Run folder.

    Returns:
        The page.

    Raises:
        InputError: If the folder is not a finished run.
        RunError: If the page cannot be written.
    """
    run = read_run(path)
    summary, search = run.summary, run.summary["kind"] == "search"
    title = (" against " if summary["kind"] == "comparison" else " + ").join(summary["policies"])
    blocks: list[Block] = [("verdict", summary["verdict"])] if "verdict" in summary else []
    if search:
        blocks += _picture("success over the weights", partial(weight_plot, summary), path / "curve.png")
    if errors := summary.get("denoising_error"):
        blocks += [("heading", "Denoising errors"), ("text", errors["verdict"])]
        blocks += _picture("errors over sigma", partial(error_plot, errors), path / "errors.png")
    blocks += _section("the table", partial(_figures, summary))
    if search:
        blocks += _section("the seeds", partial(_seeds, run, path / "outcomes.png"))
        blocks += _section("the progress", partial(_progress, {path.name: run}, path / "progress.png"))
    blocks += _section("the video", partial(_video, path / "episodes.mp4"))
    breakdowns = f"Simulator breakdowns (run again, not counted as failures): {summary['infrastructure_errors']}."
    device = device_of(run.manifest)
    blocks += [("text", f"Device: {device}.")] if device else []
    blocks += [*_taken(summary), ("text", breakdowns), ("heading", "Run"), ("code", json.dumps(run.manifest, indent=1))]
    return _write(path / "report.html", title, blocks)


def write_study(paths: Sequence[Path], page: Path, console: Console) -> None:
    """Write one page of several runs; print a leaderboard for each task.

    Args:
        paths: Run folders; those that are no finished or readable run, such as a diagnosis, are left out with a note.
        page: The HTML file.
        console: For the leaderboards.

    Raises:
        InputError: If a folder is missing, or none is a finished run.
        RunError: If the only runs are damaged, or the page cannot be written.
    """
    runs, failures = list[Run](), list[GpcError]()
    for path in dict.fromkeys(paths):
        try:
            runs.append(read_run(path))
        except GpcError as error:
            if not path.is_dir():
                raise
            failures.append(error)
    if not runs:
        raise failures[0]
    for failure in failures:
        console.print(f"note: left out: {failure}", soft_wrap=True)
    blocks: list[Block] = []
    printed: list[tuple[Table, list[str]]] = []
    for task, group in tasks(runs).items():
        left_out = sum(row.phase in RANKED and row.seed in searched(group) for run in group for row in run.rows)
        notes = [NEAR_BEST, f"{left_out} episodes on seeds that a search has used are left out."][: 1 + (left_out > 0)]
        standings = [_standing(standing) for standing in leaderboard(entries(group))]
        board = _narrow((LEADERBOARD[0], "n", *LEADERBOARD[2:6]), task)
        for standing in standings:
            board.add_row(standing[0], standing[1].partition("/")[2], *standing[2:6])
        printed.append((board, notes))
        blocks += [("heading", task), ("table", [LEADERBOARD, *standings]), ("text", " ".join(notes))]
        searches = {str(run.path): run for run in group if run.summary["kind"] == "search"}
        blocks += _section("the progress", partial(_progress, searches))
        for run in group:
            blocks += _section(str(run.path), partial(_summarized, run))
    _write(page, f"A study of {len(runs)} runs", blocks)
    for board, notes in printed:
        console.print(board)
        console.print(*notes)


def _standing(standing: Standing) -> list[str]:
    entry, parent, (low, high) = standing.entry, standing.parent, standing.ci95
    n, k, (sampler, _, device) = len(entry.rows), entry.successes, json.loads(entry.setting)
    gain, p_value, other = "", "", ""
    if parent:
        bottom, top = parent.ci95
        gain = with_interval(100 * parent.difference, (100 * bottom, 100 * top), parent.n, sign="+")
        p_value, other = f"{parent.p_value:.2g}", f"{parent.other.name}, {parent.n} shared seeds"
    method = sampler["method"] if isinstance(sampler["method"], str) else sampler["method"]["type"]
    return [
        f"{'● ' if standing.near_best else ''}{entry.name}",
        f"{k}/{n}",
        with_interval(100 * k / n, (100 * low, 100 * high), n),
        gain,
        p_value,
        f"{standing.p_best:.2g}",
        other,
        f"{entry.score:.3f}",
        ", ".join([method, f"{sampler['steps']} steps", *filter(None, [device])]),
        ", ".join(path.name for path in entry.runs),
    ]


def verdict_of(summary: Mapping[str, Any]) -> str:
    """Return the verdict, or the figures of an evaluation."""
    if "verdict" in summary:
        return str(summary["verdict"])
    ((name, phase, figures),) = rows_of(summary)
    episodes, success, score, seeds, _ = _cells(phase, figures)
    success = f"{success} % success" if reported(figures) else UNREPORTED
    return f"{name}: {success}, score {score}, {episodes} episodes on seeds {seeds}."


def _summarized(run: Run) -> list[Block]:
    """Return the part of a study's page about one run."""
    blocks: list[Block] = [("heading", str(run.path)), ("verdict", verdict_of(run.summary))]
    if run.summary["kind"] == "search":
        blocks += [*_picture("success over the weights", partial(weight_plot, run.summary)), *_seeds(run)]
    return blocks


def _figures(summary: Mapping[str, Any]) -> list[Block]:
    return [("table", table_of(summary))]


def table_of(summary: Mapping[str, Any]) -> list[Sequence[str]]:
    """Return the lines of the table as texts, the head first."""
    return [HEAD, *([name, *_cells(phase, figures)] for name, phase, figures in rows_of(summary))]


def shown(verdict: str, table: Sequence[Sequence[str]], draw: Callable[[], Figure]) -> str:
    """Return a verdict, a table and a figure as HTML for a notebook."""

    def small() -> Figure:
        figure = draw()
        figure.set_dpi(NOTEBOOK_DPI)
        return figure

    blocks: list[Block] = [("verdict", verdict), ("table", table), *_picture("the same as a figure", small)]
    return template("page.html").render(whole=False, blocks=blocks)


def _seeds(run: Run, file: Path | None = None) -> list[Block]:
    """Return the matrix of outcomes, and the number of report seeds by outcome."""
    blocks: list[Block] = [("heading", "Seeds")]
    blocks += _picture("outcome of every seed under every weights", partial(outcome_matrix, run), file)
    classes = outcomes(run, "report")
    if not classes:
        return [*blocks, ("text", "The winner is a parent: there is no mixture whose outcomes could be counted.")]
    weights = tuple(run.summary["winner"]["weights"])
    episode = {row.seed: i for i, row in enumerate(run.rows) if row.phase == "report" and row.weights == weights}
    counts = [["report seeds", "count", "the mixture's episodes, K"]]
    for kind in OUTCOMES:
        seeds = [seed for seed, name in classes.items() if name == kind]
        counts.append([kind, str(len(seeds)), ", ".join(str(episode[seed]) for seed in seeds[:5])])
    hint = f"gpc replay {run.path} --episode K --video FILE.mp4 shows one of them again."
    return [*blocks, ("table", counts), ("text", hint)]


def _progress(runs: Mapping[str, Run], file: Path | None = None) -> list[Block]:
    """Return the figure of the progress; nothing if no search ran an episode."""
    searches = {name: run for name, run in runs.items() if searched([run])}
    if not searches:
        return []
    return [
        ("heading", "Progress"),
        *_picture("episodes spent against the best", partial(progress_plot, searches), file),
    ]


def _video(clip: Path) -> list[Block]:
    if not clip.is_file() or clip.stat().st_size >= MAX_VIDEO_BYTES:
        return []
    return [("heading", "Episodes"), ("video", _data_uri(clip.read_bytes(), "video/mp4"))]


def _picture(alt: str, draw: Callable[[], Figure], file: Path | None = None) -> list[Block]:
    def build() -> list[Block]:
        content = png(draw())
        if file:
            write_atomically(file, content)
        return [("picture", (alt, _data_uri(content, "image/png")))]

    return _section(f"the figure, {alt},", build)


def _section(what: str, build: Callable[[], list[Block]]) -> list[Block]:
    """Return the blocks of one part; one line in its place if it fails.

    The episodes have run: the page must not be lost.
    """
    try:
        return build()
    except Exception as error:
        notice(missing(what, error))
        return [("text", missing(what, error))]


def _write(page: Path, title: str, blocks: Sequence[Block]) -> Path:
    write_atomically(page, template("page.html").render(title=title, blocks=blocks) + "\n")
    return page


def _cells(phase: str, figures: Mapping[str, Any]) -> list[str]:
    count, (first, last) = figures["n_episodes"], figures["seeds"]
    success = with_interval(figures["pc_success"], figures["pc_success_ci95"], count)
    return [
        str(count),
        success if reported(figures) else "not reported",
        with_interval(figures["avg_max_reward"], figures["avg_max_reward_ci95"], count, 3),
        f"{phase} {first} to {last}",
        f"{figures['avg_sum_reward']:.4g}, {figures['avg_mean_reward']:.3g}" if "avg_sum_reward" in figures else "",
    ]


def _taken(summary: Mapping[str, Any]) -> list[Block]:
    """Return what an episode took, and with which versions."""
    timing, versions = summary.get("timing"), summary.get("versions") or {}
    texts = [f"{timing['seconds_per_episode']:.2f} s an episode"] if timing else []
    if timing and timing["ms_per_chunk"] is not None:
        texts.append(f"{timing['ms_per_chunk']:.1f} ms a chunk, in batches")
    return [("text", ", ".join([*texts, *(f"{name} {number}" for name, number in versions.items())]) + ".")] * bool(
        texts or versions
    )


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
