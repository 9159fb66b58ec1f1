"""`check_robot`: the contract of a robot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

import numpy as np

from gpc.bridge.robot import Command, Reading, Robot
from gpc.testing.contract import require
from gpc.types import Array


def check_robot(robot: Robot, *, action: Command | None = None, steps: int = 20, deadline: float = 0.1) -> None:
    """Check the contract of `gpc.bridge.robot.Robot`; the robot moves.

    Checked: features; that observations fit them, are finite and new arrays; that `send_action` does not change its
    argument and returns the action that was sent; that a robot without a connection refuses both; that `disconnect` may
    be called again.

    Args:
        robot: a robot that is not connected yet.
        action: action to send; by default the first reading, if it has all features of an action.
        steps: number of reads and of sendings.
        deadline: seconds that a read or a sending may take.

    Raises:
        AssertionError: If the contract is broken; the message names the requirement.
    """
    try:
        _check_features(robot)
        _check_unconnected(robot, "before connect()", action)
        robot.connect(calibrate=False)
        try:
            sent = _check_connected(robot, action, steps, deadline)
        except BaseException:
            _raises(robot.disconnect)
            raise
        robot.disconnect()
        _check_unconnected(robot, "after disconnect()", sent)
        _check_second_disconnect(robot)
    except AssertionError as error:
        raise AssertionError(f"{type(robot).__name__}: {error}") from None


def _check_features(robot: Robot) -> None:
    sides = {"observation_features": robot.observation_features, "action_features": robot.action_features}
    again = {"observation_features": robot.observation_features, "action_features": robot.action_features}
    for side, features in sides.items():
        require(isinstance(features, Mapping) and bool(features), f"{side} must be a dict with one feature or more")
        require(list(features.items()) == list(again[side].items()), f"{side} change between two reads")
        for name, feature in features.items():
            array = isinstance(feature, tuple) and all(isinstance(size, int) and size > 0 for size in feature)
            fits = feature is float or (array and side == "observation_features")
            require(isinstance(name, str) and name != "", f"{side}: the name {name!r} is not a word")
            require(fits, f"{side}[{name!r}] is {feature!r}, neither float nor the shape of an array")


def _check_unconnected(robot: Robot, when: str, action: Command | None) -> None:
    require(robot.is_connected is False, f"is_connected is {robot.is_connected!r} {when}")
    require(_raises(robot.get_observation), f"get_observation() raises nothing {when}")
    if action is not None:
        require(_raises(lambda: robot.send_action(dict(action))), f"send_action() raises nothing {when}")


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


def _check_connected(robot: Robot, action: Command | None, steps: int, deadline: float) -> Command:
    """Check a connected robot and return the action that was sent."""
    require(robot.is_connected is True, f"is_connected is {robot.is_connected!r} after connect()")
    require(isinstance(robot.is_calibrated, bool), f"is_calibrated is {robot.is_calibrated!r}, not a bool")
    sent, arrays = dict(action or {}), list[tuple[str, Array, Array]]()
    for _ in range(steps):
        reading = _timed(robot.get_observation, "get_observation()", deadline)
        _check_reading(robot, reading)
        for name, array, copy in arrays:
            fresh = not np.shares_memory(array, reading[name]) and np.array_equal(array, copy)
            require(fresh, f"get_observation()[{name!r}] is a buffer of the robot: an older reading changed, or will")
        arrays += [(name, value, value.copy()) for name, value in reading.items() if isinstance(value, np.ndarray)]
        sent = sent or _position(robot, reading)  # of the first reading: an arm that sags would sink with each new one
        _check_sending(robot, sent, deadline)
    return sent


def _check_second_disconnect(robot: Robot) -> None:
    again = Thread(target=_raises, args=(robot.disconnect,), daemon=True)
    again.start()
    again.join(1.0)
    require(not again.is_alive(), "a second disconnect() does not return within a second")
    require(not robot.is_connected, "is_connected is true after a second disconnect()")


def _timed(call: Callable[[], Any], name: str, deadline: float) -> Any:
    begin = time.monotonic()
    result = call()
    took = time.monotonic() - begin
    require(took <= deadline, f"{name} took {took:.3f} s, the deadline is {deadline:g} s")
    return result


def _check_reading(robot: Robot, reading: Reading) -> None:
    features = robot.observation_features
    require(isinstance(reading, Mapping), f"get_observation() returns a {type(reading).__name__}, not a dict")
    differ = sorted(set(features) ^ set(reading))
    require(not differ, f"get_observation() and observation_features differ in {differ}")
    for name, value in reading.items():
        what = f"get_observation()[{name!r}]"
        if features[name] is float:
            _check_number(value, what)
            continue
        require(isinstance(value, np.ndarray), f"{what} is a {type(value).__name__}, not an array")
        require(value.shape == features[name], f"{what} is {value.shape}, observation_features has {features[name]}")
        picture = len(value.shape) == 3 and value.shape[-1] == 3
        require(not picture or value.dtype == np.uint8, f"{what} is a picture of {value.dtype}, not of uint8")
        require(bool(np.isfinite(value).all()), f"{what} is not finite")


def _check_number(value: Any, what: str) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    require(number, f"{what} is a {type(value).__name__}, not a number")
    require(bool(np.isfinite(value)), f"{what} is {value}, not finite")


def _position(robot: Robot, reading: Reading) -> Command:
    unknown = [name for name in robot.action_features if name not in reading]
    require(not unknown, f"the observation has no {unknown}: give an action that may be sent")
    return {name: float(reading[name]) for name in robot.action_features}


def _check_sending(robot: Robot, action: Command, deadline: float) -> None:
    argument = dict(action)
    sent = _timed(lambda: robot.send_action(argument), "send_action()", deadline)
    require(argument == action, "send_action() changes its argument")
    require(isinstance(sent, Mapping), f"send_action() returns a {type(sent).__name__}, not what was sent")
    differ = sorted(set(robot.action_features) ^ set(sent))
    require(not differ, f"what send_action() returns and action_features differ in {differ}")
    for name, value in sent.items():
        _check_number(value, f"send_action()[{name!r}]")
