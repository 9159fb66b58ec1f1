"""`gpc doctor`: what is installed, what is missing, and the command that fixes it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from gpc.installation import install
from gpc.rollout import gl

if TYPE_CHECKING:
    from gpc.inference.device import Memory
    from gpc.inference.modules import Size

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; `fix` is a command, empty if nothing is missing."""

    what: str
    state: str
    needed_for: str
    fix: str = ""


PACKAGES = (
    ("torch", "every policy", ""),
    ("zarr", "trajectories", ""),
    ("gym-pusht", "env=pusht", "pusht"),
    ("pymunk", "env=pusht", "pusht"),
    ("lerobot", "lerobot:FOLDER", "lerobot"),
    ("praxis-robomimic", "robomimic:FILE, diffusion_policy:FILE", "robomimic"),
    ("matplotlib", "the figures of reports", "report"),
    ("mpltern", "reports of three policies", "report"),
    ("imageio-ffmpeg", "videos", "report"),
    ("websockets", "gpc serve, remote members", "serve"),
    ("msgpack", "gpc serve, remote members", "serve"),
    ("rclpy", "robot=ros2", "ros2"),
    ("mujoco", "MuJoCo environments", "robosuite"),
    ("robosuite", "env=lift, env=can, ...", "robosuite"),
    ("gymnasium-robotics", "env=gymnasium with Fetch, Adroit, Kitchen", "gymnasium"),
)
"""Package, what needs it, and the extra that brings it."""


def findings() -> list[Finding]:
    """Return all findings, in order."""
    rows = [
        Finding(
            "python", sys.version.split()[0], "everything", "" if sys.version_info >= (3, 11) else "use 3.11 to 3.13"
        )
    ]
    rows += [_package(*row) for row in PACKAGES]
    rows += _devices()
    rows += _pictures()
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    return [*rows, Finding("disk", f"{free:.1f} GiB free here", "run folders", "" if free > 1 else "free some space")]


def findings_table() -> Table:
    """Return the findings as a table for the terminal."""
    table = Table("", "what", "found", "needed for", "fix with")
    for item in findings():
        mark = Text("x", "red") if item.fix else Text("ok", "green")
        table.add_row(mark, *map(Text, (item.what, item.state, item.needed_for, item.fix)))
    return table


def _package(name: str, needed_for: str, extra: str) -> Finding:
    try:
        return Finding(name, version(name), needed_for)
    except PackageNotFoundError:
        return Finding(name, "missing", needed_for, install(extra))


def _devices() -> Iterator[Finding]:
    """Yield what the networks can compute on."""
    what, needed_for = "device", "networks faster than on the CPU"
    try:
        from gpc.inference.device import devices_here, software
    except ImportError as error:
        yield Finding(what, f"not tried: {error}", needed_for, install(""))
        return
    versions = software()
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    cards = devices_here()
    for card in cards:
        free = f", {card.free / GIB:.1f} of {card.total / GIB:.1f} GiB free" if card.free and card.total else ""
        yield Finding(card.name, f"{card.card}{free} ({text})", needed_for)
    if not cards:
        fix = "a torch for this driver, see pytorch.org" if "driver" in versions else ""
        yield Finding(what, f"no card, the CPU only ({text})", needed_for, fix)


def needs_table(sizes: Mapping[str, Size]) -> Table:
    """Return what the weights of policies take, by name, as a table."""
    from gpc.inference.modules import Size

    table = Table("policy", "parameters", "MiB", "MiB with dtype=bfloat16")
    together = {"together": Size(*map(sum, zip(*sizes.values(), strict=True)))} if len(sizes) > 1 else {}
    for name, size in {**sizes, **together}.items():
        table.add_row(Text(name), f"{size.parameters:,}", f"{size.bytes / MIB:,.0f}", f"{size.halved / MIB:,.0f}")
    return table


def verdict(sizes: Mapping[str, Size], devices: Sequence[Memory]) -> str:
    """Return whether policies fit the memory of the first device."""
    if not devices:
        return "There is no card here: the networks compute on the CPU."
    device, (*_, largest) = devices[0], sorted(sizes, key=lambda name: sizes[name].bytes)
    whole, halved = (sum(getattr(size, kind) for size in sizes.values()) for kind in ("bytes", "halved"))
    if device.free is None:
        return f"The free memory of {device.name} is not known."
    room = f"{device.name} has {device.free / MIB:,.0f} MiB free; batches and pictures need some beside the weights"
    if whole < device.free:
        return f"The weights fit: {room}."
    remedy = "dtype=bfloat16, " if halved < device.free else ""
    other = devices[1].name if len(devices) > 1 else "cpu"
    return (
        f"The weights do not fit: {room}. Choose {remedy}another device for one policy, as in 'device={{{largest}: {other}}}', "
        "or serve it from another machine, remote:ws://HOST:PORT."
    )


def _pictures() -> list[Finding]:
    """Draw without a screen: with each backend, and with the settings of this shell."""
    needed_for, settings = "camera images from MuJoCo", gl.given_settings()
    tries = {backend: gl.first_that_works({gl.BACKEND: backend}) for backend in gl.LIBRARIES}
    failed = [choice.failures[backend] for backend, choice in tries.items() if choice.settings is None]
    if any("No module named 'mujoco'" in probe.error for probe in failed):
        return [Finding("pictures", "not tried: no mujoco", needed_for, install("robosuite"))]
    works = next((choice.settings for choice in tries.values() if choice.settings), None)
    rows = []
    for backend, choice in tries.items():
        reason = "" if choice.settings else gl.why(backend, {gl.BACKEND: backend}, choice.failures[backend])
        state = (reason + ("; not needed" if works else "")) if reason else "works"
        rows.append(Finding(f"{gl.BACKEND}={backend}", state, needed_for, "" if works else reason))
    if works:
        choice = gl.first_that_works(settings)
        broken = "" if choice.settings else gl.explain(settings, choice.failures)
        rows.append(Finding("pictures", gl.commands(settings, choice.settings or works), needed_for, broken))
    return rows
