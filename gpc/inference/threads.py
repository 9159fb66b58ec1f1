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
SLOW, PAUSE = 1.5, 50  # times a chunk with one thread; chunks until several threads are tried again
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

    If a core is busy with something else, several threads wait for each other: a chunk of 27 ms took 400 ms.

    Attributes:
        several: threads if the cores are free, at most `MOST`.
        single: least seconds of a chunk with one thread.
        pause: chunks that are sampled with one thread from now on; the first two, which a process needs to warm up.
    """

    several: int
    single: float = float("inf")
    pause: int = 2

    def __post_init__(self) -> None:
        self.several = max(1, min(MOST, self.several))

    def sample(self, chunk: Callable[[], T]) -> T:
        """Sample a chunk with the threads that pay."""
        count = 1 if self.pause else self.several
        use_threads(count)
        start = time.perf_counter()
        result = chunk()
        seconds = time.perf_counter() - start
        self.pause = max(0, self.pause - 1)
        if count == 1:
            self.single = min(self.single, seconds)
        elif seconds > SLOW * self.single:
            self.pause = PAUSE
        return result
