"""The commands that add packages to this installation, for errors and `gpc doctor`."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit
from urllib.request import url2pathname

WITHOUT_REQUIREMENTS = {"robomimic": "praxis-robomimic"}
"""Extra -> its package whose requirements exclude those of LeRobot 0.6 (Python 3.12), and which runs on the latter."""


def install(extra: str) -> str:
    """Return the command that adds an extra's packages to this installation."""
    command = f"{_pip()} {_target(f'[{extra}]' if extra else '')}"
    if extra in WITHOUT_REQUIREMENTS and sys.version_info >= (3, 12):
        command += f" && {_pip()} --no-deps {WITHOUT_REQUIREMENTS[extra]}"
    return command


def _pip() -> str:
    """Return the start of a command that installs here.

    This environment need not be the shell's.
    """
    here = Path(sys.executable)
    if find_spec("pip") is None:
        return f"uv pip install --python {quote(str(here))}"
    active = Path(shutil.which("pip") or "").parent == here.parent
    return "pip install" if active else f"{quote(str(here))} -m pip install"


def _target(extra: str) -> str:
    """Return gpc with an extra, from the place from which it was installed (PEP 610)."""
    try:
        origin = json.loads(distribution("gpc").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url, repository = origin.get("url"), origin.get("vcs_info")
    if origin.get("dir_info", {}).get("editable"):
        return f"-e {quote(url2pathname(urlsplit(url).path) + extra)}"
    if repository:
        url = f"{repository['vcs']}+{url}@{repository['commit_id']}"
    return quote(f"gpc{extra} @ {url}" if url else f"gpc{extra}")
