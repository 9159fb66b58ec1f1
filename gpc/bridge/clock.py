"""The time of the control loop, in seconds: of this machine, or virtual.

The real clock also counts the time in which the process or the machine is suspended, so that a pause is a gap between two
observations, whatever caused it. (A hypervisor that stops a guest together with all of its clocks leaves no trace here.)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

# Linux's CLOCK_MONOTONIC stands still while the machine is suspended; that of macOS does not
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class TimeSource(Protocol):
    """A monotonic clock that can be waited for."""

    def now(self) -> float:
        """Return the time."""

    def wait(self, until: float) -> None:
        """Return at a time, or at once if it has passed."""


class RealClock:
    """This machine's."""

    def now(self) -> float:
        """See `TimeSource`."""
        return time.clock_gettime(CLOCK)

    def wait(self, until: float) -> None:
        """See `TimeSource`."""
        if (left := until - self.now()) > 0:
            time.sleep(left)


@dataclass
class VirtualClock:
    """Time that passes by waiting alone."""

    time: float = 0.0

    def now(self) -> float:
        """See `TimeSource`."""
        return self.time

    def wait(self, until: float) -> None:
        """See `TimeSource`."""
        self.time = max(self.time, until)
