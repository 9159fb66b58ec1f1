"""How many threads a network computes with.

GNU OpenMP, which torch uses, keeps threads for each thread that has computed with several. If there are more of them in
a process than cores, each wait becomes a call of the kernel: a chunk of 27 ms took 108 ms on two cores. So one thread of
a process computes with several, all others with one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

MOST = 4  # threads of a network for one row: more of them wait for each other
SLOW = 2.0  # times the fastest chunk with one thread of late
PAUSES = 50, 3200  # chunks until several threads are tried again; twice as many each time they are slow at once
T = TypeVar("T")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let networks compute with `count` threads each for the body of `with`.

    With one thread the rounding of a network does not depend on the machine: chunks are bitwise those of `gpc evaluate`.
    """
    saved = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(saved)


def use_threads(count: int) -> None:
    """Let networks compute with `count` threads each in the calling thread."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


@dataclass
class Threads:
    """Threads of a network for one row: several if the cores are free, else one.

    If a core is busy with something else, several threads wait for each other: a chunk of 27 ms took 400 ms. Two such chunks in
    a row are a busy core; one alone may be anything.

    Attributes:
        several: threads if the cores are free, at most `MOST`.
        single: least seconds of a chunk with one thread, since the last pause began.
        pause: chunks that are sampled with one thread from now on; the first two, which a process needs to warm up.
    """

    several: int
    single: float = float("inf")
    pause: int = 2
    _next_pause: int = PAUSES[0]
    _tried: int = 0
    _slow: int = 0

    def __post_init__(self) -> None:
        self.several = max(1, min(MOST, self.several))

    def sample(self, chunk: Callable[[], T]) -> T:
        """Sample a chunk with the threads that pay."""
        count = 1 if self.pause else self.several
        use_threads(count)
        start = time.perf_counter()
        result = chunk()
        seconds = time.perf_counter() - start
        if count == 1:
            self.pause = max(0, self.pause - 1)
            self.single = min(self.single, seconds)
        else:
            self._judge(seconds)
        return result

    def _judge(self, seconds: float) -> None:
        """Begin a pause after two slow chunks in a row."""
        self._tried += 1
        self._slow = self._slow + 1 if seconds > SLOW * self.single else 0
        if self._slow == 2:
            at_once = self._tried == 2
            self._next_pause = min(2 * self._next_pause, PAUSES[1]) if at_once else PAUSES[0]
            self.pause, self.single, self._tried, self._slow = self._next_pause, float("inf"), 0, 0
