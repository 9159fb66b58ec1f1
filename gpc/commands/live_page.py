"""`report.html` while a run writes its folder: the run renews it, so that a browser follows without a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from gpc.errors import missing
from gpc.inert import Console, notice_once
from gpc.results.report import write_report

FIRST, EVERY = 10.0, 30.0  # seconds until the first page, and between two
SHARE = 50  # a page that takes a second is renewed after 50


class LivePage:
    """The page of a run that has not ended.

    Args:
        console: For a line that names the page.
    """

    def __init__(self, console: Console) -> None:
        self._console, self._due, self._written = console, time.monotonic() + FIRST, False

    def renew(self, folder: Path, state: Callable[[], str]) -> None:
        """Write the page if it is due; a failure is one line.

        Args:
            folder: Run folder.
            state: How far the run is, in words.
        """
        begin = time.monotonic()
        if begin < self._due:
            return
        if not self._written:
            self._console.print(f"page: {folder / 'report.html'} renews itself while this runs", soft_wrap=True)
        self._written = True
        self._write(folder, state(), round(EVERY))
        self._due = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - begin))

    def stop(self, folder: Path) -> None:
        """Write the last page of an interrupted run, which no browser reads again."""
        if self._written:
            self._write(folder, "", 0)

    def _write(self, folder: Path, state: str, refresh: int) -> None:
        try:
            write_report(folder, state, refresh)
        except Exception as error:  # the episodes must run on without it
            notice_once(missing("the page of the run so far", error))
