"""A policy server in a process of its own, for benchmarks and tests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_of(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of a command that serves, and the address that its first line says; both end with the block."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        found = re.search(r"wss?://[^; \n]+", process.stdout.readline())
        assert found is not None, f"{' '.join(command)} serves nothing"
        yield process, found[0]
    finally:
        process.kill()
        process.wait()
