"""Any robot that LeRobot can build, by its type: LeRobot's own, gpc's, and third-party plug-ins (packages `lerobot_robot_*`)."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import distributions
from typing import Any

import lerobot.cameras
import lerobot.robots
from draccus.choice_types import CHOICE_TYPE_KEY
from draccus.parsers.decoding import decode
from draccus.utils import DraccusException
from lerobot.robots import Robot, RobotConfig
from lerobot.robots.utils import make_robot_from_config

import gpc.robots
from gpc.errors import GpcError, InputError, one_line, suggest

PLUG_INS = ("lerobot_robot_", "lerobot_camera_")  # as LeRobot knows them


def make_robot(type: str, settings: Mapping[str, Any] | None = None) -> Robot:
    """A robot, not connected yet; `settings` are what LeRobot's commands take as `--robot.*`.

    Raises InputError where the type is unknown, a setting unknown, missing or of another kind, or a driver not installed.
    """
    if not isinstance(settings, Mapping | None):
        raise InputError(f"robot.settings={settings}: give keys and values, as in '{{port: /dev/ttyACM0}}'")
    given, missing = dict(settings or {}), _register()
    known = RobotConfig.get_known_choices()
    if type not in known:
        hint = f" ({'; '.join(missing)})" if missing else ""
        raise InputError(f"unknown robot.type {type!r}{suggest(type, list(known))}{hint}")
    offered = [field.name for field in fields(known[type])]
    for name in given:
        if name not in offered:
            raise InputError(f"robot.type={type} has no setting {name!r}{suggest(name, offered)}")
    try:
        return make_robot_from_config(decode(RobotConfig, {CHOICE_TYPE_KEY: type, **given}))
    except Exception as error:  # whatever a driver raises
        raise _explained(type, error) from None


def _register() -> list[str]:
    """Let every robot and camera register its type; returns which could not, and why."""
    packages, missing = (lerobot.cameras, lerobot.robots, gpc.robots), []
    own = [
        module.name for package in packages for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]
    installed = [found.name or "" for found in distributions()]  # no name: a broken installation
    for name in [*own, *(name for name in installed if name.startswith(PLUG_INS))]:
        try:
            import_module(name)
        except Exception as error:  # whatever a driver raises
            missing.append(f"{name} was not imported: {one_line(error)}")
    return missing


def _explained(type: str, error: BaseException) -> GpcError:
    """What LeRobot wraps, on one line, with its cause; an error of gpc as it is."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if isinstance(chain[-1], GpcError):
        return chain[-1]
    field = next((link for link in chain if isinstance(link, DraccusException)), chain[-1])  # it names the field
    said = one_line(field) if field is chain[-1] else f"{one_line(field)} {one_line(chain[-1])}"
    mend = "; install its driver as LeRobot's page on this robot says" if isinstance(chain[-1], ImportError) else ""
    return InputError(f"robot.type={type} cannot be made: {said}{mend}")
