"""`check_robot`: the contract of a robot."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

import numpy as np

from gpc.bridge.robot import Command, Reading, Robot
from gpc.testing.env import _require
from gpc.types import Array


def check_robot(robot: Robot, *, action: Command | None = None, steps: int = 20, deadline: float = 0.1) -> None:
    """Check that `robot`, not connected yet, keeps the contract of `gpc.bridge.robot.Robot`. It moves: clear its way.

    `action` is sent `steps` times; by default where the robot says first that it is, if its observation has the action's
    features. A read or an action may take `deadline` seconds. Checked: features; that observations are what these promise,
    finite, and new arrays; that `send_action` leaves its argument alone and returns what was sent; that a robot that is not
    connected refuses both; that `disconnect` may be called again.
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
        _require(isinstance(features, Mapping) and bool(features), f"{side} must be a dict with one feature or more")
        _require(list(features.items()) == list(again[side].items()), f"{side} change from one look to the next")
        for name, feature in features.items():
            array = isinstance(feature, tuple) and all(isinstance(size, int) and size > 0 for size in feature)
            fits = feature is float or (array and side == "observation_features")
            _require(isinstance(name, str) and name != "", f"{side}: the name {name!r} is not a word")
            _require(fits, f"{side}[{name!r}] is {feature!r}, neither float nor the shape of an array")


def _check_unconnected(robot: Robot, when: str, action: Command | None) -> None:
    _require(robot.is_connected is False, f"is_connected is {robot.is_connected!r} {when}")
    _require(_raises(robot.get_observation), f"get_observation() raises nothing {when}")
    if action is not None:
        _require(_raises(lambda: robot.send_action(dict(action))), f"send_action() raises nothing {when}")


def _raises(call: Callable[[], Any]) -> bool:
    try:
        call()
    except Exception:
        return True
    return False


def _check_connected(robot: Robot, action: Command | None, steps: int, deadline: float) -> Command:
    """Returns the action that was sent."""
    _require(robot.is_connected is True, f"is_connected is {robot.is_connected!r} after connect()")
    _require(isinstance(robot.is_calibrated, bool), f"is_calibrated is {robot.is_calibrated!r}, not a bool")
    sent, seen = dict(action or {}), list[tuple[str, Array, Array]]()
    for _ in range(steps):
        reading = _timed(robot.get_observation, "get_observation()", deadline)
        _check_reading(robot, reading)
        for name, array, copy in seen:
            fresh = not np.shares_memory(array, reading[name]) and np.array_equal(array, copy)
            _require(fresh, f"get_observation()[{name!r}] is the robot's own buffer: an older one changed, or will")
        seen += [(name, value, value.copy()) for name, value in reading.items() if isinstance(value, np.ndarray)]
        sent = sent or _where(robot, reading)  # the first one: an arm that sags would sink with each new one
        _check_sending(robot, sent, deadline)
    return sent


def _check_second_disconnect(robot: Robot) -> None:
    again = Thread(target=_raises, args=(robot.disconnect,), daemon=True)
    again.start()
    again.join(1.0)
    _require(not again.is_alive(), "a second disconnect() does not return within a second")
    _require(not robot.is_connected, "is_connected is true after a second disconnect()")


def _timed(call: Callable[[], Any], name: str, deadline: float) -> Any:
    begin = time.monotonic()
    result = call()
    took = time.monotonic() - begin
    _require(took <= deadline, f"{name} took {took:.3f} s, the deadline is {deadline:g} s")
    return result


def _check_reading(robot: Robot, reading: Reading) -> None:
    features = robot.observation_features
    _require(isinstance(reading, Mapping), f"get_observation() returns a {type(reading).__name__}, not a dict")
    differ = sorted(set(features) ^ set(reading))
    _require(not differ, f"get_observation() and observation_features differ in {differ}")
    for name, value in reading.items():
        what = f"get_observation()[{name!r}]"
        if features[name] is float:
            _check_number(value, what)
            continue
        _require(isinstance(value, np.ndarray), f"{what} is a {type(value).__name__}, not an array")
        _require(value.shape == features[name], f"{what} is {value.shape}, observation_features says {features[name]}")
        picture = len(value.shape) == 3 and value.shape[-1] == 3
        _require(not picture or value.dtype == np.uint8, f"{what} is a picture of {value.dtype}, not of uint8")
        _require(bool(np.isfinite(value).all()), f"{what} is not finite")


def _check_number(value: Any, what: str) -> None:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    _require(number, f"{what} is a {type(value).__name__}, not a number")
    _require(bool(np.isfinite(value)), f"{what} is {value}, not finite")


def _where(robot: Robot, reading: Reading) -> Command:
    unknown = [name for name in robot.action_features if name not in reading]
    _require(not unknown, f"the observation does not say where {unknown} are: give an action that may be sent")
    return {name: float(reading[name]) for name in robot.action_features}


def _check_sending(robot: Robot, action: Command, deadline: float) -> None:
    given = dict(action)
    sent = _timed(lambda: robot.send_action(given), "send_action()", deadline)
    _require(given == action, "send_action() changes what it was given")
    _require(isinstance(sent, Mapping), f"send_action() returns a {type(sent).__name__}, not what was sent")
    differ = sorted(set(robot.action_features) ^ set(sent))
    _require(not differ, f"what send_action() returns and action_features differ in {differ}")
    for name, value in sent.items():
        _check_number(value, f"send_action()[{name!r}]")
