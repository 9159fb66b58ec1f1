"""Python processes that gpc starts: what they import is installed, or the user's own, and never what lies in the current folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python(*arguments: str) -> list[str]:
    """Return the command of a Python process that does not import from the current folder."""
    return [sys.executable, "-P", *arguments]


def environment() -> dict[str, str]:
    """Return the environment for such a process: an empty entry of PYTHONPATH would be the current folder."""
    path = os.pathsep.join(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | (
        {"PYTHONPATH": path} if path else {}
    )


def search_path() -> list[str]:
    """Return sys.path without the current folder, if that is there for no other reason than how Python was started.

    Python puts "" first for -c and at a prompt, and the folder itself for -m. A folder that the user's own program, script or
    PYTHONPATH put there stays.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return [entry for entry in sys.path if entry]
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = any(name and os.path.abspath(name) == here for name in named)
    return [entry for entry in sys.path if entry and (entry != here or own or not _started_elsewhere(Path(here)))]


def _started_elsewhere(folder: Path) -> bool:
    """Whether Python was started by -m, with a module that does not lie in this folder."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is None or file is None:
        return False
    top = spec.name.partition(".")[0]
    return not (Path(file).is_relative_to(folder / top) or Path(file) == folder / f"{top}.py")
