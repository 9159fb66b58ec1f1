"""How many threads a network computes with: torch's setting, which holds for a process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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


def serving_threads(reproducible: bool) -> int:
    """Return the threads of a network that computes beside clients or a robot.

    One if chunks must be reproducible, else one less than there are cores. In a thread beside the main one a network on both of
    two cores took 65 ms a chunk, on one of them 33 ms.
    """
    return 1 if reproducible else max(1, (os.cpu_count() or 1) - 1)
