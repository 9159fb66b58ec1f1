"""Robots behind LeRobot's `Robot` interface: any of LeRobot's own by its type, simulated ones, arms on ROS 2."""

from importlib import import_module
from typing import Any

# LeRobot looks for a robot's class in the package of its configuration; nothing is imported before
_WHERE = {"SimulatedRobot": "simulated", "Ros2Robot": "over_ros2"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
