"""Data from outside (files of a run, cards, replies of a server) as typed objects, checked once, when they are read.

The types are dataclasses or `msgspec.Struct`s; bounds stand beside the field, as in `Annotated[int, Meta(ge=1,
le=64)]`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
import numpy as np
from msgspec import Meta

from gpc.disk import reason
from gpc.errors import InputError, one_line

T = TypeVar("T")
Seconds = Annotated[float, Meta(gt=0, le=1e9)]
"""A positive, finite time."""
Count = Annotated[int, Meta(ge=1, le=10**6)]
Seed = Annotated[int, Meta(ge=0, le=2**31)]
FILE_LIMIT = 64 * 2**20  # bytes of a JSON file
DEPTH = 64  # of nested maps and lists


def read(kind: type[T], path: Path, limit: int = FILE_LIMIT) -> T:
    """Read a JSON file.

    Args:
        kind: type of the result.
        path: file to read.
        limit: largest size in bytes; a larger file is refused before it is read.

    Raises:
        InputError: If the file is missing, unreadable, too large, no JSON, or does not fit `kind`; the field is named.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} has {size} bytes, at most {limit} are read")
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from None
    return decode(kind, content, str(path))


def decode(kind: type[T], content: bytes, where: str) -> T:
    """Decode JSON; `where` names its source in errors.

    Raises:
        InputError: If it is no JSON (NaN and Infinity are none), or a field is missing, unknown, of another type or out
        of bounds.
    """
    try:
        result = msgspec.json.decode(content, type=kind)
        _check_depth(result)
        return result
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"{where}: {_reason(error)}") from None


def convert(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    """Convert plain data to a typed object; `where` names its source in errors.

    Raises:
        InputError: If a field is missing, unknown, of another type or out of bounds.
    """
    try:
        _check_depth(data)
        return msgspec.convert(data, kind)
    except (msgspec.ValidationError, InputError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"{where}: {_reason(error)}") from None


def check(kind: Any, value: object, name: str) -> Any:
    """Check a setting and return it in its type; `name` is its key.

    Raises:
        InputError: If the value is of another type or out of bounds.
    """
    try:
        return msgspec.convert(value.item() if isinstance(value, np.generic) else value, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}={value}: {_reason(error)}") from None


def check_fields(settings: object, prefix: str) -> None:
    """Check a dataclass by the types and bounds of its fields.

    Raises:
        InputError: If a field is of another type or out of bounds; `prefix` and its name are the key in a
        configuration.
    """
    for name, kind in get_type_hints(type(settings), include_extras=True).items():
        check(kind, getattr(settings, name), prefix + name)


def _check_depth(data: object) -> None:
    """Refuse data nested deeper than `DEPTH`, which recursive functions cannot read."""
    level: list[Any] = [data]
    for _ in range(DEPTH):
        level = [
            item
            for node in level
            for item in (node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ())
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} levels deep")


def _reason(error: Exception) -> str:
    """Return the error on one line, the field first."""
    text, _, place = one_line(error).rpartition(" - at `")
    return f"{place.rstrip('`').removeprefix('$').lstrip('.')}: {text}" if text else one_line(error)
