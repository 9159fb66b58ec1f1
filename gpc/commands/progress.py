"""How far a rollout is: a bar in a terminal, elsewhere (slurm, nohup, tee) a line every 30 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpc.inert import Console
from gpc.results.run_folder import Row

COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
)
EVERY = 30.0  # seconds between two lines


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
    if console.is_terminal or console.is_jupyter:
        with Progress(*COLUMNS, console=console, transient=True) as progress:
            bar = progress.add_task(title, total=total, completed=completed)
            yield lambda count: progress.advance(bar, count)
        return
    begin = printed = time.monotonic()
    done = completed

    def advance(count: int) -> None:
        nonlocal done, printed
        done, now = done + count, time.monotonic()
        if now - printed < EVERY:
            return
        printed, finished = now, rows()
        success = sum(row.success for row in finished) / len(finished)
        left = timedelta(seconds=round((now - begin) / (done - completed) * (total - done)))
        console.print(f"{title}: {done} of {total} episodes, {success:.0%} success, {left} left", soft_wrap=True)

    yield advance
