"""How far a rollout is, in a terminal and elsewhere."""

import io

from gpc.commands import progress
from gpc.inert import Console
from gpc.results.run_folder import Row


def test_without_a_terminal_a_line_has_count_success_and_time_left(monkeypatch):
    text, clock, rows = io.StringIO(), iter([0.0, 10.0, 31.0, 40.0, 62.0]), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress_of(Console(file=text), "search", 100, 20, lambda: rows) as advance:
        for count in (4, 4, 8, 4):
            rows += [Row("search", 0, len(rows) + i, (1.0,), i % 4 == 0, 0.5, 9) for i in range(count)]
            advance(count)
    assert text.getvalue().splitlines() == [
        "search: 28 of 100 episodes, 25% success, 0:04:39 left",
        "search: 40 of 100 episodes, 25% success, 0:03:06 left",
    ]


def test_in_a_terminal_there_is_a_bar():
    text = io.StringIO()
    with progress.progress_of(Console(file=text, force_terminal=True), "search", 100, 20, list) as advance:
        advance(4)
    assert "24/100" in text.getvalue()
