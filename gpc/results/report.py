"""Tables in the terminal, and a self-contained page (`page.html`) of one run or of several."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Column, Table

from gpc.disk import write_atomically
from gpc.errors import GpcError
from gpc.inert import Console, template
from gpc.results.charts import (
    episode_table,
    error_charts,
    outcome_chart,
    progress_chart,
    race_chart,
    result_of,
    reward_chart,
    score_chart,
    weights_chart,
)
from gpc.results.devices import device_of
from gpc.results.figures import NOTEBOOK_DPI, png, weight_plot
from gpc.results.leaderboard import (
    OUTCOMES,
    RANKED,
    Entry,
    Run,
    Standing,
    begun,
    entries,
    leaderboard,
    outcomes,
    read_begun,
    read_manifest,
    read_run,
    searched,
    tasks,
)
from gpc.results.page import Block, chart, data_uri, section, write_page
from gpc.results.summary import LEAST, UNREPORTED, mixture, read_summary, reported, with_interval
from gpc.results.trajectories import mean_rewards
from gpc.results.video import VIDEO, read_clips

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_VIDEO_BYTES = 8_000_000
UNFINISHED = "The run is not finished: the same command resumes it."
HEAD = ("weights", "episodes", "success %", "score", "seeds", "reward: sum, a step")
LEADERBOARD = (
    "policy or mixture", "successes", "success %", "gain", "p", "p, best",  # in the terminal, too
    "best parent", "score", "sampler", "runs",
)  # fmt: skip
NEAR_BEST = (
    "● is not shown to be worse than the first line: exact paired tests at 5 % divided by their number (Bonferroni), so that the "
    "best entry has this mark with a probability of 95 %. Gain and p (McNemar's exact test): over the best parent, on shared seeds."
)


MARKS = (
    "Points: search seeds, as large as their episodes are many. Squares and star: the parents and the winner on report seeds, "
    "whose success is not too high on average, as that of the best point is."
)
CELLS = "one a row, sorted by outcome; blue is won, orange lost. A click on a cell shows the episode."


def rows_of(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (name, phase, figures) of every line of the table."""
    if summary["kind"] == "evaluation":
        return [(f"{' + '.join(summary['policies'])} {mixture(summary['weights'])}", "evaluate", summary)]
    if summary["kind"] == "comparison":
        return [(side["name"], "compare", side) for side in summary["sides"]]
    curve = [(mixture(figures["weights"]), "search", figures) for figures in summary["candidates"]]
    parents = [(parent["name"], "report", parent) for parent in summary["parents"]]
    winner = summary["winner"]
    return [*curve, *parents, *([(f"winner {mixture(winner['weights'])}", "report", winner)] if winner else [])]


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
    summary = read_begun(path).summary if begun(path) else read_summary(path)
    device = device_of(read_manifest(path))
    console.print(summary_table(summary))
    if device:
        console.print(f"device: {device}", soft_wrap=True)
    if "verdict" in summary:
        console.print(summary["verdict"])
    elif not reported(summary):
        console.print(f"note: {UNREPORTED}")
    if "denoising_error" in summary:
        console.print(summary["denoising_error"]["verdict"])
    if begun(path):
        console.print(f"note: {UNFINISHED}")
    if count := summary.get("infrastructure_errors"):
        console.print(f"{count} simulator failures; their episodes were run again and are no failures of the policy")


def write_report(path: Path, state: str = "", refresh: int = 0) -> Path:
    """Write `report.html`, and the curve of a finished search as `curve.png`.

    A part that fails, such as a chart, is one line on the page and on stderr; the rest is still written.

    Args:
        path: Run folder, finished or not.
        state: How far the run is, in words, if it has not ended.
        refresh: Seconds after which a browser reads the page again; 0: never.

    Returns:
        The page.

    Raises:
        InputError: If the folder is no run, or no episode of it has finished.
        RunError: If the page cannot be written.
    """
    unfinished = bool(state) or begun(path)
    run = read_begun(path) if unfinished else read_run(path)
    summary = run.summary
    title = (" against " if summary["kind"] == "comparison" else " + ").join(summary["policies"])
    names = names_of(run)
    blocks: list[Block] = [("state", state or UNFINISHED)] if unfinished else [("verdict", verdict_of(summary))]
    blocks += _facts(run)
    if summary["kind"] == "search" and not unfinished:
        section("curve.png", partial(_curve, summary, path / "curve.png"))
    if summary["kind"] == "search":
        blocks += _searched(run, names)
    elif summary["kind"] == "comparison":
        blocks += [
            ("heading", "Seeds"),
            *chart("outcome of every seed", partial(outcome_chart, run, "compare", names), replay_of(run)),
        ]
    else:
        blocks += [("heading", "Scores"), *chart("score of every episode", partial(score_chart, run), replay_of(run))]
    blocks += _rewards(run, names)
    if not unfinished:
        blocks += section("the video", partial(_video, run, names))
    blocks += [("heading", "Episodes"), *_episode_table(run, names)]
    blocks += [("fold", "manifest.json"), ("code", json.dumps(run.manifest, indent=1)), ("unfold", "")]
    return write_page(path / "report.html", title, blocks, refresh)


def _curve(summary: Mapping[str, Any], path: Path) -> list[Block]:
    """Write the curve as a file, which is no part of the page."""
    write_atomically(path, png(weight_plot(summary)))
    return []


def names_of(run: Run) -> list[str]:
    """Return the policy or mixture of each row of a run, as its table names it."""
    summary = run.summary
    if summary["kind"] == "comparison":
        sides = [side["name"] for side in summary["sides"]]
        return [sides[row.candidate] for row in run.rows]
    names = {(phase, tuple(figures["weights"])): name for name, phase, figures in reversed(rows_of(summary))}
    return [names[row.phase, row.weights] for row in run.rows]


def replay_of(run: Run) -> str:
    """Return the start of the command that runs an episode of a run again."""
    return f"gpc replay {shlex.quote(str(run.path))}"


def _facts(run: Run) -> list[Block]:
    """Return how the run came about: command, time, device, versions, table."""
    summary = run.summary
    timing, versions, device = (
        summary.get("timing"),
        summary.get("versions") or run.manifest["versions"],
        device_of(run.manifest),
    )
    facts = []
    if command := run.resolved.get("command"):
        facts.append(("command", str(command)))
    if timing:
        chunk = timing["ms_per_chunk"]
        texts = [f"{timing['n_episodes']} episodes, {timing['seconds_per_episode']:.2f} s an episode"]
        facts.append(
            ("time", ", ".join([*texts, *([f"{chunk:.1f} ms a chunk, in batches"] if chunk is not None else [])]))
        )
    facts.append(("task", f"{run.env.name}, at most {run.env.max_steps} steps"))
    facts += [("device", device)] if device else []
    facts.append(("versions", ", ".join(f"{name} {number}" for name, number in versions.items())))
    if "infrastructure_errors" in summary:
        count = summary["infrastructure_errors"]
        facts.append(("simulator breakdowns", f"{count}, run again, not counted as failures"))
    return [("facts", facts), *section("the table", partial(_figures, summary))]


def _searched(run: Run, names: Sequence[str]) -> list[Block]:
    """Return the charts of a search."""
    summary, replay = run.summary, replay_of(run)
    blocks: list[Block] = [("heading", "Success over the weights")]
    blocks += chart("success over the weights", partial(weights_chart, summary))
    blocks += [("note", MARKS)]
    if errors := summary.get("denoising_error"):
        blocks += [("heading", "Denoising errors"), ("text", errors["verdict"]), *error_blocks(errors)]
    blocks += [("heading", "Seeds"), *section("the outcomes", partial(_outcomes, run))]
    for phase in ("report", "search"):
        if any(row.phase == phase for row in run.rows):
            blocks += [("note", f"{phase} seeds: {CELLS}")]
            blocks += chart(f"outcome of every {phase} seed", partial(outcome_chart, run, phase, names), replay)
    if searched([run]):
        blocks += [("heading", "Race"), *chart("episodes spent on each weights", partial(race_chart, summary))]
        blocks += [
            ("heading", "Progress"),
            *chart("episodes spent against the best", partial(progress_chart, {run.path.name: run})),
        ]
    return blocks


def error_blocks(errors: Mapping[str, Any]) -> list[Block]:
    """Return the charts of denoising errors over sigma."""
    blocks: list[Block] = []
    for name, draw in error_charts(errors).items():
        blocks += [("note", name), *chart(name, draw)]
    return blocks


def _outcomes(run: Run) -> list[Block]:
    """Return the number of report seeds by outcome."""
    classes = outcomes(run, "report")
    if not classes:
        if begun(run.path):
            return []
        return [("text", "The winner is a parent: there is no mixture whose outcomes could be counted.")]
    weights = tuple(run.summary["winner"]["weights"])
    episode = {row.seed: i for i, row in enumerate(run.rows) if row.phase == "report" and row.weights == weights}
    counts = [["report seeds", "count", "the mixture's episodes, K"]]
    for kind in OUTCOMES:
        seeds = [seed for seed, name in classes.items() if name == kind]
        counts.append([kind, str(len(seeds)), ", ".join(str(episode[seed]) for seed in seeds[:5])])
    hint = f"{replay_of(run)} --episode K --video FILE.mp4 shows one of them again."
    return [("table", counts), ("note", hint)]


def _rewards(run: Run, names: Sequence[str]) -> list[Block]:
    """Return the mean reward at each step: by policy, or of won and lost episodes."""
    groups: dict[str, list[int]] = {}
    for k, row in enumerate(run.rows):
        if row.phase != "search":
            name = names[k] if run.summary["kind"] != "evaluation" else "won" if row.success else "lost"
            groups.setdefault(name, []).append(k)
    drawn = chart("reward over time", lambda: reward_chart(mean_rewards(run.path, groups)))
    return (
        [("heading", "Reward over time"), ("note", "Mean at each step, of the episodes that still run."), *drawn]
        if drawn
        else []
    )


def _episode_table(run: Run, names: Sequence[str]) -> list[Block]:
    """Return the table of all episodes with its filters."""
    filters: dict[str, list[str]] = {}

    def draw() -> Any:
        table, values = episode_table(run, names)
        filters.update(values)
        return table

    note = "Failures first; a click on a head sorts, a click on a line shows the episode."
    return [("note", note), *chart("episodes", draw, replay_of(run), filters=filters)]


def write_study(
    paths: Sequence[Path],
    page: Path,
    console: Console,
    others: Mapping[Path, Callable[[], list[Block]]] = MappingProxyType({}),
) -> None:
    """Write one page of several runs; print a leaderboard for each task.

    Args:
        paths: Run folders; those that are no finished or readable run are left out with a note.
        page: The HTML file.
        console: For the leaderboards.
        others: Makes the part about each folder of another kind: a diagnosis, a deployed episode.

    Raises:
        InputError: If a folder is missing, or none is a finished run or of another kind.
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
    if not runs and not others:
        raise failures[0]
    for failure in failures:
        console.print(f"note: left out: {failure}", soft_wrap=True)
    blocks: list[Block] = []
    printed: list[tuple[Table, list[str]]] = []
    if len(tasks(runs)) > 1:
        blocks += [
            ("heading", "All tasks"),
            ("table", _per_task({t: entries(group) for t, group in tasks(runs).items()})),
        ]
    for task, group in tasks(runs).items():
        standings = [_standing(standing) for standing in leaderboard(entries(group))]
        board = _narrow((LEADERBOARD[0], "n", *LEADERBOARD[2:6]), task)
        for standing in standings:
            board.add_row(standing[0], standing[1].partition("/")[2], *standing[2:6])
        notes = _notes(group)
        printed.append((board, notes))
        blocks += [("heading", task), ("table", [LEADERBOARD, *standings]), ("text", " ".join(notes)), *_group(group)]
    for path, build in others.items():
        blocks += [("heading", str(path)), *section(str(path), build)]
    headings = [i + 1 for i, (kind, _) in enumerate(blocks) if kind == "heading"]
    write_page(page, f"A study of {len(runs) + len(others)} runs", [("contents", headings), *blocks])
    for board, notes in printed:
        console.print(board)
        console.print(*notes)


def _notes(group: Sequence[Run]) -> list[str]:
    """Return what a leaderboard's marks mean, and how many episodes it leaves out."""
    used = searched(group)
    left_out = sum(row.phase in RANKED and row.seed in used for run in group for row in run.rows)
    return [NEAR_BEST, f"{left_out} episodes on seeds that a search has used are left out."][: 1 + (left_out > 0)]


def _group(group: Sequence[Run]) -> list[Block]:
    """Return the charts of the runs of one task."""
    blocks: list[Block] = []
    if searches := {str(run.path): run for run in group if searched([run])}:
        drawn = chart("episodes spent against the best", partial(progress_chart, searches))
        blocks += [("heading", "Progress"), *drawn]
    for run in group:
        blocks += section(str(run.path), partial(_summarized, run))
    return blocks


def _per_task(boards: Mapping[str, Sequence[Entry]]) -> list[list[str]]:
    """Return the success of each policy or mixture on each task as lines of a table."""
    names = dict.fromkeys(entry.name for board in boards.values() for entry in board)
    lines = [["success %", *boards]]
    for name in names:
        alike = [[entry for entry in board if entry.name == name] for board in boards.values()]
        rates = [", ".join(f"{100 * e.rank[0]:.1f} ({e.successes}/{len(e.rows)})" for e in group) for group in alike]
        lines.append([name, *rates])
    return lines


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
    episodes, success, score, _, _ = _cells(phase, figures)
    success, (first, last) = f"{success} % success" if reported(figures) else UNREPORTED, figures["seeds"]
    return f"{name}: {success}, score {score}, {episodes} episodes on seeds {first} to {last}."


def _summarized(run: Run) -> list[Block]:
    """Return the part of a study's page about one run."""
    names = names_of(run)
    blocks: list[Block] = [("heading", str(run.path)), ("verdict", verdict_of(run.summary))]
    if run.summary["kind"] == "search":
        blocks += chart("success over the weights", partial(weights_chart, run.summary))
        blocks += section("the outcomes", partial(_outcomes, run))
    phase = {"search": "report", "comparison": "compare"}.get(run.summary["kind"])
    if phase:
        return blocks + chart(
            f"outcome of every {phase} seed", partial(outcome_chart, run, phase, names), replay_of(run)
        )
    return blocks + chart("score of every episode", partial(score_chart, run), replay_of(run))


def _figures(summary: Mapping[str, Any]) -> list[Block]:
    """Return the table; the many candidates of a search are folded."""
    rows = list(zip((phase for _, phase, _ in rows_of(summary)), table_of(summary)[1:], strict=True))
    reports = [row for phase, row in rows if phase != "search"]
    tried = [row for phase, row in rows if phase == "search"]
    blocks: list[Block] = [("table", [HEAD, *reports])] if reports else []
    if tried:
        blocks += [("fold", f"all {len(tried)} weights on search seeds"), ("table", [HEAD, *tried]), ("unfold", "")]
    return blocks


def table_of(summary: Mapping[str, Any]) -> list[Sequence[str]]:
    """Return the lines of the table as texts, the head first."""
    return [HEAD, *([name, *_cells(phase, figures)] for name, phase, figures in rows_of(summary))]


def shown(verdict: str, table: Sequence[Sequence[str]], draw: Callable[[], Figure]) -> str:
    """Return a verdict, a table and a figure as HTML for a notebook."""

    def picture() -> list[Block]:
        figure = draw()
        figure.set_dpi(NOTEBOOK_DPI)
        return [("picture", ("the same as a figure", data_uri(png(figure), "image/png")))]

    blocks: list[Block] = [("verdict", verdict), ("table", table), *section("the figure", picture)]
    return template("page.html").render(whole=False, blocks=blocks, scripts=[])


def _video(run: Run, names: Sequence[str]) -> list[Block]:
    """Return the videos of the run, one of each seed, with what happened."""
    file, clips = run.path / VIDEO, read_clips(run.path)
    if not file.is_file() or file.stat().st_size >= MAX_VIDEO_BYTES:
        return []
    content = file.read_bytes()
    if not clips:  # of an earlier version
        return [("heading", "Videos"), ("video", data_uri(content, "video/mp4"))]
    gallery = list[dict[str, Any]]()
    for clip in clips:
        episodes = [(k, row) for k, row in enumerate(run.rows) if row.seed == clip.seed and row.phase != "search"]
        results = "; ".join(f"{names[k]}: {result_of(row)}, score {row.score:.3f}, episode {k}" for k, row in episodes)
        text = f"seed {clip.seed}. {results}"
        gallery.append(
            {"seed": clip.seed, "start": clip.start, "end": clip.end, "text": text, "wide": len(episodes) > 1}
        )
    heading = (
        "Videos: failures first" if run.summary["kind"] == "evaluation" else "Videos: where the sides differ first"
    )
    return [("heading", heading), ("clips", (base64.b64encode(content).decode(), gallery))]


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
