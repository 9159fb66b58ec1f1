"""Off-screen drawing with MuJoCo: which GL backend works here, and the Debian package that brings one."""

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
    """Try a backend in a process of its own (a broken driver may crash); the error's last line, or "" where it works."""
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
    """Without MUJOCO_GL inside: MuJoCo loads what it names when imported, and robosuite sets it, whether that works or not."""
    given = os.environ.pop("MUJOCO_GL", None)
    try:
        yield
    finally:
        os.environ.pop("MUJOCO_GL", None)
        if given:
            os.environ["MUJOCO_GL"] = given


@cache
def choose_gl() -> str:
    """The value of MUJOCO_GL: as given, else the first backend that works, which it is set to from then on.

    Raises InputError naming the package where what is given, or each, does not work.
    """
    given = os.environ.get("MUJOCO_GL")
    for backend in [given] if given else PACKAGES:
        if not probe(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    if given:
        package = PACKAGES.get(given, "its library")
        raise InputError(f"MUJOCO_GL={given} does not work here: apt-get install {package}, or leave it unset")
    raise InputError(f"MuJoCo can draw no picture here: apt-get install one of {', '.join(PACKAGES.values())}")
