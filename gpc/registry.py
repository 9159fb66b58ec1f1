"""Objects that packages register by name as entry points; gpc registers its own in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gpc.errors import InputError, suggest


def load_entry(group: str, kind: str, name: str, others: Iterable[str] = ()) -> Any:
    """What a package registered under a name as an entry point of this group; `others` are names known besides.

    Raises InputError where the name is unknown or the package lacks another one.
    """
    found = _registered(group)
    if name not in found:
        raise InputError(f"unknown {kind} {name!r}{suggest(name, [*found, *others])}")
    try:
        return found[name].load()
    except ImportError as error:
        raise InputError(f"{kind} {name!r} needs a package that is missing ({error}); run gpc doctor") from None


@cache
def _registered(group: str) -> dict[str, EntryPoint]:
    """Looked up once: that reads the metadata of every installed package."""
    return {point.name: point for point in entry_points(group=group)}


def is_ours(group: str, name: str) -> bool:
    """Return whether the entry point of this name belongs to gpc itself, not to another package."""
    return name in _registered(group) and _registered(group)[name].value.startswith("gpc.")
