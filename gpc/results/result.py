"""The result of a run as an object that shows itself: one line, a table with its figure, rows, the page."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gpc.errors import InputError
from gpc.installation import install
from gpc.results.figures import success_plot, weight_plot
from gpc.results.report import shown, table_of, verdict_of, write_report
from gpc.results.run_folder import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class RunResult:
    """Result of `gpc.evaluate`, `gpc.search` and `gpc.compare`.

    Attributes:
        summary: content of summary.json (docs/summary-schema.md).
        rows: all episodes, sorted.
        folder: the run folder; without `run_dir` one that is deleted with the result.
    """

    summary: Mapping[str, Any]
    rows: tuple[Row, ...]
    folder: Path

    @property
    def verdict(self) -> str:
        """The outcome in words, with the figures on which it rests."""
        return verdict_of(self.summary)

    def _repr_html_(self) -> str:
        return shown(self.verdict, table_of(self.summary), self.plot)

    def plot(self) -> Figure:
        """Draw success over the weights of a search, else success with its interval."""
        return weight_plot(self.summary) if self.summary["kind"] == "search" else success_plot(self.summary)

    def to_pandas(self) -> DataFrame:
        """Return the episodes as a table, one row each; "weights" holds tuples."""
        return frame([msgspec.structs.asdict(row) for row in self.rows])

    def report(self, *, show: bool = True) -> Path:
        """Write report.html in the run folder, as `gpc report` does.

        Args:
            show: whether it is opened in a browser, if there is a screen.

        Returns:
            The page.
        """
        return opened(write_report(self.folder), show)


def frame(rows: list[dict[str, Any]]) -> DataFrame:
    """Return rows as a table of pandas.

    Raises:
        InputError: If pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError:
        raise InputError(f"to_pandas needs pandas: {install('notebook')}") from None
    return DataFrame(rows)


def opened(page: Path, show: bool) -> Path:
    """Open a page in a browser if there is a screen; return it."""
    if show and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(page.resolve().as_uri())
    return page
