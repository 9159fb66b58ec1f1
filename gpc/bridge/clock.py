"""Clocks of the control loop, in seconds: of this machine, or virtual."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

# Linux's CLOCK_MONOTONIC stands still while the machine is suspended; that of macOS does not
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class TimeSource(Protocol):
    """A monotonic clock that a thread can wait for."""

    def now(self) -> float:
        """Return the time."""

    def wait(self, until: float) -> None:
        """Return at a time, or at once if it has passed."""


class RealClock:
    """The clock of this machine, which also runs while the process is suspended.

    It runs while the machine is suspended, too, so a pause is a gap between two observations, whatever caused it. (A
    hypervisor that stops a guest together with all of its clocks leaves no trace here.)
    """

    def now(self) -> float:
        """Return the time since the machine was started."""
        return time.clock_gettime(CLOCK)

    def wait(self, until: float) -> None:
        """Sleep until a time, or return at once if it has passed."""
        if (remaining := until - self.now()) > 0:
            time.sleep(remaining)


@dataclass
class VirtualClock:
    """Time that passes by waiting alone."""

    time: float = 0.0

    def now(self) -> float:
        """Return the time that was last waited for."""
        return self.time

    def wait(self, until: float) -> None:
        """Set the time to `until`, unless it has passed."""
        self.time = max(self.time, until)
