"""Any robot that LeRobot can build, by its type: LeRobot's, gpc's, and third-party plug-ins (packages `lerobot_robot_*`)."""

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

PLUG_INS = ("lerobot_robot_", "lerobot_camera_")  # prefixes of the packages that LeRobot looks for
DERIVED = {("gpc_ros2", "rate"), ("gpc_simulated", "sends_per_step")}  # settings that `set_rate` replaces


def make_robot(type: str, settings: Mapping[str, Any] | None = None) -> Robot:
    """Return a robot, not connected yet.

    Args:
        type: type of the robot, as LeRobot's `--robot.type`.
        settings: as LeRobot's `--robot.*`.

    Raises:
        InputError: If the type is unknown, a setting is unknown, missing or of another kind, or a driver is not installed.
    """
    if not isinstance(settings, Mapping | None):
        raise InputError(f"robot.settings={settings}: give keys and values, as in '{{port: /dev/ttyACM0}}'")
    chosen, missing = dict(settings or {}), _register()
    known = RobotConfig.get_known_choices()
    if type not in known:
        hint = f" ({'; '.join(missing)})" if missing else ""
        raise InputError(f"unknown robot.type {type!r}{suggest(type, list(known))}{hint}")
    offered = [field.name for field in fields(known[type])]
    for name in chosen:
        if (type, name) in DERIVED:
            raise InputError(f"robot.settings.{name} follows from fps and rate; leave it out")
        if name not in offered:
            raise InputError(f"robot.type={type} has no setting {name!r}{suggest(name, offered)}")
    try:
        return make_robot_from_config(decode(RobotConfig, {CHOICE_TYPE_KEY: type, **chosen}))
    except Exception as error:  # whatever a driver raises
        raise _explained(type, error) from None


def _register() -> list[str]:
    """Import every robot and camera; return those that failed, and why."""
    packages, missing = (lerobot.cameras, lerobot.robots, gpc.robots), []
    modules = [
        module.name for package in packages for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    ]
    installed = [package.name or "" for package in distributions()]  # no name: a broken installation
    for name in [*modules, *(name for name in installed if name.startswith(PLUG_INS))]:
        try:
            import_module(name)
        except Exception as error:  # whatever a driver raises
            missing.append(f"{name} was not imported: {one_line(error)}")
    return missing


def _explained(type: str, error: BaseException) -> GpcError:
    """Return an error of LeRobot on one line, with its cause; one of gpc unchanged."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if isinstance(chain[-1], GpcError):
        return chain[-1]
    field = next((link for link in chain if isinstance(link, DraccusException)), chain[-1])  # it names the field
    text = one_line(field) if field is chain[-1] else f"{one_line(field)} {one_line(chain[-1])}"
    fix = "; install its driver as LeRobot's page on this robot describes" if isinstance(chain[-1], ImportError) else ""
    return InputError(f"robot.type={type} cannot be made: {text}{fix}")
