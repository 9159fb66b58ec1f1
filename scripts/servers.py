"""A policy server in a process of its own, for benchmarks and tests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_of(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; yield the process and the address in its first line.

    The process ends with the block.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = re.search(r"wss?://[^; \n]+", process.stdout.readline())
        assert address is not None, f"{' '.join(command)} serves nothing"
        yield process, address[0]
    finally:
        process.kill()
        process.wait()
