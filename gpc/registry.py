"""Objects by name: those that packages register as entry points, and those that the user names as module:name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from gpc.errors import InputError, suggest, type_and_text

ENVS, SEARCHES, COMPOSERS = "gpc.envs", "gpc.searches", "gpc.composers"
"""Groups of entry points, beside `gpc.policies` and `gpc.costs`."""
USER_FOLDERS: set[str] = set()
"""Working directories that hold modules which the user named; simulator processes import from them too."""
USER_MODULES: dict[str, str] = {}
"""SHA-256 of the files of these modules when they were imported; run folders record it beside the packages' versions."""


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


def import_named(module: str, kind: str) -> ModuleType:
    """Import a module that the user names, in the working directory or installed.

    The module runs: only names from the command line or from Python may come here, none that a file or a server holds.

    Args:
        module: name of the module.
        kind: kind of the object that it holds, for errors.

    Raises:
        InputError: If there is no such module, or it does not import.
    """
    here = os.getcwd()
    beside = _is_here(module)
    if beside:
        USER_FOLDERS.add(here)
        sys.path[:] = [here, *(entry for entry in sys.path if entry != here)]
    try:
        imported = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise InputError(f"{kind}: {module} needs a package that is missing ({error})") from None
        fix = f"; write {module[:-3]}:NAME" if module.endswith(".py") else ""
        raise InputError(f"{kind}: there is no module {module!r}, neither in {here} nor installed{fix}") from None
    except Exception as error:
        raise InputError(f"{kind}: the module {module} does not import ({cause(error)})") from None
    if beside and imported.__file__ and Path(imported.__file__).is_relative_to(here):
        USER_MODULES.setdefault(module, f"sha256:{sha256(Path(imported.__file__).read_bytes()).hexdigest()[:16]}")
    return imported


def is_module(name: str) -> bool:
    """Return whether a module is here or installed; imports nothing."""
    top = name.partition(".")[0]
    return top.isidentifier() and (_is_here(name) or top in sys.modules or find_spec(top) is not None)


def _is_here(module: str) -> bool:
    top = module.partition(".")[0]
    return Path(f"{top}.py").is_file() or Path(top).is_dir()


def cause(error: Exception) -> str:
    """Return type, text and place of an exception of the user's code."""
    *_, place = extract_tb(error.__traceback__)
    return f"{type_and_text(error)}, {place.filename}:{place.lineno}"


def load_named(name: str, kind: str) -> Any:
    """Return the object that the user names as module:name, see `import_named`.

    Raises:
        InputError: If the module does not import, or holds no such object.
    """
    module, _, path = name.partition(":")
    value: Any = import_named(module, kind)
    for attribute in path.split("."):
        if not hasattr(value, attribute):
            known = [key for key, item in vars(value).items() if callable(item) and not key.startswith("_")]
            raise InputError(f"{kind}: {module} holds no {path!r}{suggest(path, known) if known else ''}")
        value = getattr(value, attribute)
    return value


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
