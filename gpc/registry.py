"""Objects that packages, gpc among them, register by name as entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from gpc.errors import InputError, suggest

ENVS, SEARCHES, COMPOSERS = "gpc.envs", "gpc.searches", "gpc.composers"
"""Groups of entry points, beside `gpc.policies` and `gpc.costs`."""


def load_entry(group: str, kind: str, name: str, others: Iterable[str] = ()) -> Any:
    """Load the object that a package registered by name.

    Args:
        group: group of entry points.
        kind: kind of the object, for errors.
        name: name of the entry point.
        others: further known names, for errors.

    Raises:
        InputError: If the name is unknown, or the package needs one that is missing.
    """
    points = _registered(group)
    if name not in points:
        raise InputError(f"unknown {kind} {name!r}{suggest(name, [*points, *others])}")
    try:
        return points[name].load()
    except ImportError as error:
        raise InputError(f"{kind} {name!r} needs a package that is missing ({error}); run gpc doctor") from None


def names(group: str) -> list[str]:
    """Return the registered names of a group."""
    return sorted(_registered(group))


def name_of(group: str, thing: Callable[..., Any]) -> str | None:
    """Return the registered name of a class or function, or None; imports nothing."""
    for name, point in _registered(group).items():
        value: Any = sys.modules.get(point.module)
        for attribute in point.attr.split("."):
            value = getattr(value, attribute, None)
        if value is thing:
            return name
    return None


def is_ours(group: str, name: str) -> bool:
    """Return whether the entry point of this name belongs to gpc itself."""
    return name in _registered(group) and _registered(group)[name].value.startswith("gpc.")


@cache
def _registered(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group; reads the metadata of all packages once."""
    return {point.name: point for point in entry_points(group=group)}
