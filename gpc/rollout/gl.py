"""GL backends for MuJoCo's pictures without a screen: which settings work here, and why others do not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gpc.errors import InputError
from gpc.rollout.process import environment, python

LIBRARIES = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6")}
"""Backend, in order of preference -> the library that it loads, and the Debian package that contains it."""
BACKEND, DEVICE, PLATFORM = "MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM"
"""Environment variables of MuJoCo and of PyOpenGL that choose how pictures are drawn."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
CARDS = Path("/proc/driver/nvidia/gpus")
"""What NVIDIA's driver has a folder in for each card."""
MOST_DEVICES = 32

_PROBE = """
import os, mujoco
if os.environ["MUJOCO_GL"] == "egl":
    from mujoco.egl import egl_ext
    print(len(egl_ext.eglQueryDevicesEXT()))
context = mujoco.GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
"""


class Probe(NamedTuple):
    """What drawing in another process came to.

    Attributes:
        error: last line of the error; "" if it works.
        devices: number of EGL's devices, as far as known.
    """

    error: str
    devices: int = 0


class Choice(NamedTuple):
    """The settings that work (None if none does), and the failed probes."""

    settings: dict[str, str] | None
    failures: dict[str, Probe]


def probe(settings: Mapping[str, str]) -> Probe:
    """Draw with these settings in another process, since a broken driver may crash."""
    inherited = {key: value for key, value in environment().items() if key not in (BACKEND, DEVICE, PLATFORM)}
    command = python("-c", _PROBE)
    try:
        done = subprocess.run(command, env={**inherited, **settings}, capture_output=True, timeout=60, text=True)
    except subprocess.TimeoutExpired:
        return Probe("the driver gave no answer in 60 s")
    count = done.stdout.split()
    devices = int(count[-1]) if count and count[-1].isdigit() else 0
    error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Probe(error if done.returncode else "", devices)


def first_that_works(settings: Mapping[str, str]) -> Choice:
    """Try the backends and EGL devices that settings leave open.

    Args:
        settings: values of MUJOCO_GL, MUJOCO_EGL_DEVICE_ID and PYOPENGL_PLATFORM, as far as they are given.
    """
    failures: dict[str, Probe] = {}
    wanted = settings.get(BACKEND) or ("egl" if DEVICE in settings else None)
    for backend in [wanted] if wanted else LIBRARIES:
        tried = 0
        for device in _devices(settings) if backend == "egl" else [""]:
            if tried and int(device) >= failures[backend].devices:
                continue
            chosen = {BACKEND: backend} | ({DEVICE: device} if device else {})
            failures[backend] = probe({**settings, **chosen})
            tried += 1
            if not failures[backend].error:
                return Choice(chosen, failures)
    return Choice(None, failures)


def _devices(settings: Mapping[str, str]) -> list[str]:
    """Return the EGL devices to try: CUDA's first one has robosuite's number."""
    if DEVICE in settings:
        return [settings[DEVICE]]
    return list(dict.fromkeys([*_visible()[:1], *map(str, range(MOST_DEVICES))]))


def _visible() -> list[str]:
    """Return the numbers of the visible cards.

    Cards that are named otherwise (UUIDs, MIG) have none.
    """
    cards = os.environ.get(VISIBLE)
    if cards is None:
        return [str(number) for number in range(len(list(CARDS.glob("*"))))]
    return cards.split(",") if all(number.isdigit() for number in cards.split(",")) else []


def visible_to(worker: int) -> dict[str, str]:
    """Return the cards of a simulator process, its own first, on which it draws.

    Args:
        worker: number of the process, counted from 0.

    Returns:
        CUDA_VISIBLE_DEVICES, or nothing if there are no several cards with numbers.
    """
    cards = _visible()
    first = worker % max(len(cards), 1)
    return {VISIBLE: ",".join(cards[first:] + cards[:first])} if len(cards) > 1 else {}


def given_settings() -> dict[str, str]:
    """Return the settings that the environment of this process has."""
    return {key: os.environ[key] for key in (BACKEND, DEVICE, PLATFORM) if os.environ.get(key)}


def why(backend: str, settings: Mapping[str, str], failed: Probe) -> str:
    """Return why a backend does not work with these settings, naming the setting."""
    name, device = f"{BACKEND}={backend}", settings.get(DEVICE)
    if backend not in (*LIBRARIES, "glfw"):
        return f"{name} is none of {', '.join(LIBRARIES)} and glfw"
    if backend == "glfw":
        screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        return f"{name} cannot open the screen {screen}" if screen else f"{name} needs a screen, and DISPLAY is not set"
    if settings.get(PLATFORM, backend).lower() != backend:
        return f"{PLATFORM}={settings[PLATFORM]} excludes {name}"
    library, package = LIBRARIES[backend]
    if find_library(library) is None:
        return f"{name} needs the library lib{library}: apt-get install {package}"
    if backend == "egl" and device is not None and failed.devices:
        if not device.isdigit() or int(device) >= failed.devices:
            return f"{DEVICE}={device} is no device of EGL, which has {failed.devices}, counted from 0"
        return f"{DEVICE}={device} is a device that cannot be opened ({failed.error})"
    if backend == "egl" and not failed.devices and "no answer" not in failed.error:
        return f"{name} finds no device (a container needs NVIDIA_DRIVER_CAPABILITIES=all, or Mesa's libegl-mesa0)"
    return f"{name} does not work ({failed.error})"


@contextmanager
def undecided() -> Iterator[None]:
    """Remove the settings for a while.

    MuJoCo loads the backend that MUJOCO_GL names when it is imported, and robosuite sets it to one that may not work; it
    refuses a device of EGL that is not among CUDA_VISIBLE_DEVICES, which number other things.
    """
    before = {key: os.environ.pop(key, None) for key in (BACKEND, DEVICE)}
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value:
                os.environ[key] = value


@cache
def choose_gl() -> str:
    """Return MUJOCO_GL, after setting what the environment leaves open.

    Raises:
        InputError: If what is given, or everything, does not work; it names the setting and the fix.
    """
    settings = given_settings()
    choice = first_that_works(settings)
    if choice.settings is None:
        raise InputError(explain(settings, choice.failures))
    os.environ.update(choice.settings)
    return choice.settings[BACKEND]


def explain(settings: Mapping[str, str], failures: Mapping[str, Probe]) -> str:
    """Return one line: why the settings do not work, and what does."""
    if settings and (works := first_that_works({}).settings):
        reason = why(*next((backend, settings, failed) for backend, failed in failures.items()))
        return f"{reason}; this works here: {commands(settings, works)}"
    return "MuJoCo can draw no picture: " + ", or ".join(why(name, settings, failures[name]) for name in failures)


def commands(settings: Mapping[str, str], works: Mapping[str, str]) -> str:
    """Return the shell commands that turn settings into those that work."""
    exported = [f"{key}={value}" for key, value in works.items() if key == BACKEND or key in settings]
    removed = [f"unset {key}" for key in settings if key not in works]
    return "; ".join([f"export {' '.join(exported)}", *removed])
