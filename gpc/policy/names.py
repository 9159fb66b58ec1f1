"""Names of observations that fit by convention: those of LeRobot, openpi, gymnasium and Diffusion Policy."""

from __future__ import annotations

from collections.abc import Mapping

from gpc.errors import InputError
from gpc.policy.observation import TASK, fits
from gpc.policy.spec import ObservationSpec

Shape = tuple[int, ...]

CAMERAS = ("images", "pixels")  # folders of cameras: observation.images.front, pixels.front
SYNONYMS = {"agent_pos": "state", "pixels": "image", "prompt": TASK}


def fitting_names(
    spec: ObservationSpec, offered: Mapping[str, Shape], example: str = "rename_map={{{}: {}}}"
) -> dict[str, str]:
    """Return the offered name of each key that is offered under another name.

    Two names fit if they are the same without LeRobot's or openpi's "observation" and without "images" or "pixels" before a
    camera's name; "state" and "agent_pos", "image" and "pixels", "task" and "prompt" are one. Among several names of one key,
    those of the key's shape count.

    Args:
        spec: what a policy reads.
        offered: shape of each observation, with or without a batch or history, by name.
        example: the setting that names an observation, for the error.

    Raises:
        InputError: If more than one name fits a key, or one name fits two keys.
    """
    fitting: dict[str, str] = {}
    for key, shape in spec.shapes.items():
        if key in offered:
            continue
        names = [
            name
            for name, size in offered.items()
            if _plain(name) == _plain(key)
            and name not in spec.shapes
            and (key == TASK or fits(size[len(size) - len(shape) :], shape, key in spec.images))
        ]
        others = [other for other, name in fitting.items() if name in names]
        if len(names) > 1 or others:
            several = " or ".join(map(repr, names))
            too = f", as {others[0]!r}" if others else ""
            raise InputError(
                f"observation {key!r} may be {several}{too}; name it, as in '{example.format(key, names[0])}'"
            )
        if names:
            fitting[key] = names[0]
    return fitting


def describe_names(names: Mapping[str, str]) -> str:
    """Return the line for users on names that fit by convention."""
    pairs = ", ".join(f"{key} is {name}" for key, name in names.items())
    return f"names of observations that fit by convention: {pairs}"


def _plain(name: str) -> str:
    """Return a name without the parts that codebases add."""
    first, *rest = name.replace("/", ".").split(".")
    if first == "observation" and rest:
        first, *rest = rest
    if first in CAMERAS and rest:
        first, *rest = rest
    plain = ".".join([first, *rest])
    return SYNONYMS.get(plain, plain)
