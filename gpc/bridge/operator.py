"""What ends an episode from outside: signals, the stop key, the end of its time."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KEYS = " qQ\x1b"  # space, q, escape


@dataclass
class Operator:
    """The first reason to stop stays; `code` is what the process shall exit with (0: as planned)."""

    why: str = ""
    code: int = 0
    _terminal: int | None = None

    def press(self, why: str, code: int = 1) -> None:
        """Stop, for this reason."""
        if not self.why:
            self.why, self.code = why, code

    def finish(self) -> None:
        """The time is over."""
        self.press("the time is over", 0)

    def look(self) -> None:
        """Whether the stop key was pressed."""
        if self._terminal is not None and select.select([self._terminal], [], [], 0)[0]:
            pressed = os.read(self._terminal, 64).decode(errors="replace")
            if set(pressed) & set(KEYS):
                self.press("the stop key", 130)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals and, on a terminal, single keys come here; must be entered in the main thread."""
        before = {number: signal.signal(number, self._caught) for number in SIGNALS}
        saved = None
        if sys.stdin is not None and sys.stdin.isatty():
            self._terminal = sys.stdin.fileno()
            saved = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._terminal is not None and saved is not None:
                termios.tcsetattr(self._terminal, termios.TCSADRAIN, saved)
                self._terminal = None

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.press(signal.Signals(number).name, 128 + number)
