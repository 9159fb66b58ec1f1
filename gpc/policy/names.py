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


def stored_names(
    spec: ObservationSpec, rename_map: Mapping[str, str], path: str, shapes: Mapping[str, Shape]
) -> dict[str, str]:
    """Return a file's name of each observation that policies read.

    It is the observation's own, one that `rename_map` maps to it, or one that fits by convention (`fitting_names`).

    Args:
        spec: what the policies read, under the environment's names.
        rename_map: another name -> the environment's name.
        path: file, for errors.
        shapes: shapes of the file's observations.

    Raises:
        InputError: If an observation is missing, or more than one name fits.
    """
    stored = {name if name in spec.shapes else rename_map.get(name, name): name for name in shapes}
    offered = {name: shapes[key] for name, key in stored.items()}
    fitting = fitting_names(spec, offered, "rename_map={{{1}: {0}}}")
    for key in spec.shapes:
        if fitting.get(key, key) not in stored:
            fix = f"if one is it, add 'rename_map={{ITS NAME: {key}}}'"
            raise InputError(f"{path} has no {key!r}; it has {', '.join(sorted(shapes))}; {fix}")
    return {key: stored[fitting.get(key, key)] for key in spec.shapes}


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
