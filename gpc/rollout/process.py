"""Python processes that gpc starts, which import nothing from the current folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpc.registry import USER_FOLDERS


def python(*arguments: str) -> list[str]:
    """Return a Python command that imports nothing from the current folder."""
    return [sys.executable, "-P", *arguments]


def environment() -> dict[str, str]:
    """Return the environment; PYTHONPATH loses empty entries (current folder)."""
    path = os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | (
        {"PYTHONPATH": path} if path else {}
    )


def search_path() -> list[str]:
    """Return sys.path without the current folder that Python added at its start.

    Python puts "" first for -c and at a prompt, and the folder itself for -m. A folder that the user's program, script
    or PYTHONPATH put there stays, and one that holds a module which the user has named.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return [entry for entry in sys.path if entry]
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    wanted = here in USER_FOLDERS or any(name and os.path.abspath(name) == here for name in named)
    return [entry for entry in sys.path if entry and (entry != here or wanted or not _started_elsewhere(Path(here)))]


def _started_elsewhere(folder: Path) -> bool:
    """Return whether Python was started by -m, with a module outside this folder."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is None or file is None:
        return False
    top = spec.name.partition(".")[0]
    return not (Path(file).is_relative_to(folder / top) or Path(file) == folder / f"{top}.py")
