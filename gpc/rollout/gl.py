"""GL backends for MuJoCo's pictures without a screen, and the Debian packages that contain them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from gpc.errors import InputError
from gpc.rollout.process import environment, python

PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
"""Backend, in order of preference -> the Debian package that it needs."""

_PROBE = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"


def probe(backend: str) -> str:
    """Try a backend in another process, since a broken driver may crash.

    Returns:
        The last line of the error, or "" if the backend works.
    """
    done = subprocess.run(
        python("-c", _PROBE),
        env=environment() | {"MUJOCO_GL": backend},
        capture_output=True,
        timeout=60,
        text=True,
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


@contextmanager
def undecided() -> Iterator[None]:
    """Remove MUJOCO_GL for a while.

    MuJoCo loads the backend that it names when it is imported, and robosuite sets it to one that may not work.
    """
    backend = os.environ.pop("MUJOCO_GL", None)
    try:
        yield
    finally:
        os.environ.pop("MUJOCO_GL", None)
        if backend:
            os.environ["MUJOCO_GL"] = backend


@cache
def choose_gl() -> str:
    """Return MUJOCO_GL; if it is not set, set it to the first backend that works.

    Raises:
        InputError: If the given backend, or every one, does not work; it names the package.
    """
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else PACKAGES:
        if not probe(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    if wanted:
        package = PACKAGES.get(wanted, "its library")
        raise InputError(f"MUJOCO_GL={wanted} does not work here: apt-get install {package}, or leave it unset")
    raise InputError(f"MuJoCo can draw no picture here: apt-get install one of {', '.join(PACKAGES.values())}")
