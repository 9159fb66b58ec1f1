"""Any robot that LeRobot can build, by its type: LeRobot's own, gpc's, and third-party plug-ins (packages `lerobot_robot_*`)."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

import lerobot.cameras
import lerobot.robots
from draccus.choice_types import CHOICE_TYPE_KEY
from draccus.parsers.decoding import decode
from draccus.utils import DraccusException
from lerobot.robots import Robot, RobotConfig
from lerobot.robots.utils import make_robot_from_config
from lerobot.utils.import_utils import register_third_party_plugins

import gpc.robots
from gpc.errors import GpcError, InputError
from gpc.load import suggest


def make_robot(type: str, settings: Mapping[str, Any] | None = None) -> Robot:
    """A robot, not connected yet; `settings` are what LeRobot's commands take as `--robot.*`.

    Raises InputError where the type is unknown, a setting unknown, missing or of another kind, or a driver not installed.
    """
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
    missing = []
    for package in (lerobot.cameras, lerobot.robots, gpc.robots):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            try:
                import_module(module.name)
            except ImportError as error:
                missing.append(f"{module.name} was not imported: {error}")
    register_third_party_plugins()
    return missing


def _explained(type: str, error: BaseException) -> GpcError:
    """What LeRobot wraps, on one line; an error of gpc as it is."""
    while error.__cause__ is not None and not isinstance(error, DraccusException):
        error = error.__cause__
    if isinstance(error, GpcError):
        return error
    mend = "; install its driver as LeRobot's page on this robot says" if isinstance(error, ImportError) else ""
    return InputError(f"robot.type={type} cannot be made: {' '.join(str(error).split())[:300]}{mend}")
