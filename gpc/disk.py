"""Atomic writes of files, and errors of a disk in one line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

from gpc.errors import GpcError, RunError, one_line

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(target: object, kind: type[GpcError] = RunError) -> Iterator[None]:
    """Turn an OSError of the block into one line with `target` and the cause."""
    try:
        yield
    except OSError as error:
        raise kind(f"{target} cannot be written: {reason(error)}") from None


def reason(error: OSError) -> str:
    """Return the cause of a failed access to a disk, in words."""
    return "the disk is full" if error.errno in FULL else error.strerror or one_line(error)


def as_json(content: Any) -> str:
    """Return plain data as JSON; what JSON lacks, NaN and infinity, is null."""

    def finite(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: finite(item) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return [finite(item) for item in node]
        return None if isinstance(node, float) and not isfinite(node) else node

    return json.dumps(finite(content), indent=1, allow_nan=False) + "\n"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: it has the old or the new content at any time.

    Raises:
        RunError: If the file cannot be written; the old content stays.
    """
    with writing(path):
        replace_file(path, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Replace a file atomically and flush it to disk.

    Raises:
        OSError: If the file cannot be written; the old content stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # in a shared folder it may be a link to any file
        with temporary.open("xb", buffering=0) as file:
            write_whole(file.fileno(), content)
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(file: int, content: bytes | memoryview) -> None:
    """Write every byte to a file descriptor; a single write may be cut short.

    Raises:
        OSError: If the disk took only a part.
    """
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync_folder(path: Path) -> None:
    """Flush the names of a folder's files to disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
