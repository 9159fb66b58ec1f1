"""How far a rollout is: a bar in a terminal, one line in a notebook, elsewhere (slurm, nohup, tee) a line every 30 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any
from uuid import uuid4

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpc.inert import Console, line
from gpc.results.run_folder import Row

COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)
EVERY = 30.0  # seconds between two lines
RENEWED = 0.3  # seconds between two states of the line of a notebook


def in_notebook() -> bool:
    """Return whether a notebook runs this process."""
    return Console().is_jupyter


@contextmanager
def progress_of(
    console: Console, title: str, total: int, completed: int, rows: Callable[[], Collection[Row]]
) -> Iterator[Callable[[int], None]]:
    """Yield what is called with each number of episodes that have finished.

    Args:
        console: terminal, file or pipe.
        title: what runs.
        total: number of episodes.
        completed: number of those that had finished before.
        rows: the finished ones, for the success so far.
    """
    notebook = in_notebook()
    if console.is_terminal and not notebook:
        with Progress(*COLUMNS, console=console, transient=True) as progress:
            bar = progress.add_task(title, total=total, completed=completed)
            yield lambda count: progress.advance(bar, count)
        return
    show, every = (_notebook_line(), RENEWED) if notebook and not console.quiet else (_line(console), EVERY)
    begin = printed = time.monotonic()
    done = completed

    def advance(count: int) -> None:
        nonlocal done, printed
        done, now = done + count, time.monotonic()
        if now - printed < every and not (notebook and done == total):
            return
        printed = now
        show(state_of(title, done, total, (now - begin) / (done - completed), rows()))

    yield advance


def state_of(title: str, done: int, total: int, seconds: float, rows: Collection[Row]) -> str:
    """Return how far a rollout is, in words.

    Args:
        title: what runs.
        done: number of finished episodes.
        total: number of all.
        seconds: time that one takes.
        rows: finished ones, for the success so far.
    """
    success = sum(row.success for row in rows) / len(rows)
    left = timedelta(seconds=round(seconds * (total - done)))
    end = f", {left} left" if done < total else ""
    return f"{title}: {done} of {total} episodes, {success:.0%} success{end}"


def _line(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, soft_wrap=True)


def _notebook_line() -> Callable[[str], None]:
    """Return what shows a text in place of the one before.

    rich's bar needs ipywidgets in a notebook.
    """
    display: Any = import_module("IPython.display").display
    name, renewal = f"gpc-{uuid4().hex}", False

    def show(text: str) -> None:
        nonlocal renewal
        display({"text/plain": line(text)}, raw=True, display_id=name, update=renewal)
        renewal = True

    return show
