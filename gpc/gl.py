"""Off-screen drawing with MuJoCo: which GL backend works here, and the Debian package that brings one."""

from __future__ import annotations

import os
import subprocess
import sys

from gpc.errors import InputError

PACKAGES = {"egl": "libegl1", "osmesa": "libosmesa6"}
"""Backend, in order of preference -> the Debian package that it needs."""

_PROBE = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"


def probe(backend: str) -> str:
    """Try a backend in a process of its own (a broken driver may crash); the error's last line, or "" where it works."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env=os.environ | {"MUJOCO_GL": backend},
        capture_output=True,
        timeout=60,
        text=True,
    )
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def choose_gl() -> str:
    """The value of MUJOCO_GL: as given, else the first backend that works, which it is set to from then on.

    Raises InputError naming the packages where none does.
    """
    given = os.environ.get("MUJOCO_GL")
    if given:
        return given
    for backend in PACKAGES:
        if not probe(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise InputError(f"MuJoCo can draw no picture here: apt-get install one of {', '.join(PACKAGES.values())}")
