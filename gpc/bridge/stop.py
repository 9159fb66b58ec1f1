"""Requests to stop from outside: signals, the stop key, the end of the time."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

_UNCATCHABLE = {"SIGKILL", "SIGSTOP"}
_HARMLESS = {"SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGINFO"}  # ignored by default
_ERRORS = {"SIGPIPE", "SIGXFSZ"}  # Python ignores them: the write raises an OSError
_FAULTS = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"}  # the faulty instruction would run again
_OTHERS = {getattr(signal, name) for name in _UNCATCHABLE | _HARMLESS | _ERRORS | _FAULTS if hasattr(signal, name)}
SIGNALS = tuple(sorted(set(signal.valid_signals()) - _OTHERS))
"""Every catchable signal that ends or stops a process by default, real-time signals included."""
KEYS = " qQ\x1b"  # space, q, escape


@dataclass
class StopSignal:
    """The first request to stop.

    Attributes:
        reason: empty as long as there is no request; the first reason stays.
        code: exit code of the process, 0 for an end as planned.
    """

    reason: str = ""
    code: int = 0
    _terminal: int | None = None

    def request(self, reason: str, code: int = 1) -> None:
        """Request a stop; a later reason than the first is ignored."""
        if not self.reason:
            self.reason, self.code = reason, code

    def finish(self) -> None:
        """Request the stop at the end of the time."""
        self.request("the time is over", 0)

    def poll(self) -> None:
        """Read the stop key; a terminal that hung up is a request to stop, too."""
        terminal = self._terminal
        if terminal is None or not select.select([terminal], [], [], 0)[0] or not _foreground(terminal):
            return
        with _blocked(signal.SIGTTIN):  # in the background it would interrupt the read, which Python repeats, for ever
            try:
                pressed = os.read(terminal, 64).decode(errors="replace")
            except OSError:
                pressed = ""
        if not pressed:
            self._terminal = None
            self.request("the terminal is gone", 128 + signal.SIGHUP)
        elif set(pressed) & set(KEYS):
            self.request("the stop key", 130)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turn signals and single keys of a terminal into requests to stop.

        Must be entered in the main thread. The handlers and the terminal are restored at the end.
        """
        handlers = {number: signal.signal(number, self._caught) for number in SIGNALS}
        try:
            with self._single_keys():
                yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: not a handler of Python

    @contextmanager
    def _single_keys(self) -> Iterator[None]:
        terminal = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        if terminal is None or not _foreground(terminal):
            yield
            return
        saved, self._terminal = termios.tcgetattr(terminal), terminal
        tty.setcbreak(terminal)
        try:
            yield
        finally:
            self._terminal = None
            with suppress(termios.error, OSError), _blocked(signal.SIGTTOU):  # it may have hung up
                if _foreground(terminal):  # else the shell has restored it
                    termios.tcsetattr(terminal, termios.TCSANOW, saved)  # the others wait for a stopped terminal

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.request(_name(number), 128 + number)


def _foreground(terminal: int) -> bool:
    """Return whether the terminal's keys are for this process, or it has hung up."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return True


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Block a signal in this thread, so that SIGTTIN or SIGTTOU interrupts no call."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"
