"""The interface of a robot (LeRobot's `Robot`, with the names that it has there), and its features as a policy's arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gpc.errors import GpcError, InputError, RunError, type_and_text
from gpc.inert import notice_once
from gpc.policy.names import describe_names, fitting_names
from gpc.policy.observation import TASK, fits, write_text
from gpc.policy.spec import ObservationSpec
from gpc.types import Array, Frame

Reading = Mapping[str, Any]
"""What `get_observation` returns: feature -> a number, or an array (height, width, channels)."""
Command = dict[str, float]
"""What `send_action` takes and returns: feature -> a number."""
LEROBOT_STATE = "observation.state"
"""LeRobot's name for all numbers that a robot senses, in the robot's order."""


class Robot(Protocol):
    """The part of `lerobot.robots.Robot` that the loop calls, from one thread."""

    name: str

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """Feature -> `float`, or the shape of an array: (height, width, 3) of a camera."""

    @property
    def action_features(self) -> Mapping[str, Any]:
        """Feature -> `float`, in the order of the action's dimensions."""

    @property
    def is_connected(self) -> bool:
        """Whether `get_observation` and `send_action` may be called."""

    @property
    def is_calibrated(self) -> bool:
        """Whether the robot is calibrated; true if there is nothing to calibrate."""

    def connect(self, calibrate: bool = True) -> None:
        """Open the robot; with `calibrate` a robot that needs it prompts its user."""

    def get_observation(self) -> Reading:
        """Return what the robot senses now."""

    def send_action(self, action: Command) -> Command:
        """Move the robot; return what was sent, which the robot may have clipped."""

    def disconnect(self) -> None:
        """Close the robot, which is then in its safe state."""


@runtime_checkable
class HasRate(Protocol):
    """A robot that must know how often it is sent an action."""

    def set_rate(self, rate: float, fps: float) -> None:
        """Take the rates of the control loop, before `connect`.

        Args:
            rate: actions that are sent in a second.
            fps: steps in a second of the demonstrations.

        Raises:
            InputError: If the robot does not run at these rates.
        """


@runtime_checkable
class HasVirtualTime(Protocol):
    """A simulated robot, which moves when an action is sent and else waits."""

    @property
    def waits_for_driver(self) -> bool:
        """Whether virtual time may send to the robot."""


@contextmanager
def connected(robot: Robot) -> Iterator[None]:
    """Connect a robot for the body of `with`, and disconnect it whatever happens.

    Raises:
        InputError: If the robot is not calibrated.
        RunError: If its driver or the body raised something else, or it was not disconnected.
    """
    failure: BaseException | None = None
    opened = False
    try:
        robot.connect(calibrate=False)
        opened = True
        if not robot.is_calibrated:
            raise InputError(
                f"{robot.name} is not calibrated; run lerobot-calibrate --robot.type={robot.name} with its other "
                "--robot.* settings, as its configuration has them here"
            )
        yield
    except BaseException as error:  # SystemExit of a driver, too
        failure = error
    problem = disconnect(robot, opened)
    if failure is not None and not isinstance(failure, GpcError | KeyboardInterrupt):
        failure = driver_failure(failure)
    if problem:
        failure = RunError(problem if failure is None else f"{str(failure) or type(failure).__name__}; {problem}")
    if failure is not None:
        raise failure from None


def driver_failure(error: BaseException) -> RunError:
    """Return the error for what a robot's driver raised."""
    return RunError(f"the robot failed: {type_and_text(error)}")


def disconnect(robot: Robot, opened: bool) -> str:
    """Disconnect a robot; return why that failed, empty if it did not.

    LeRobot's `is_connected` is false and its `disconnect` raises, before it reaches the motors, if one camera is gone. So the
    error of `disconnect` counts although `is_connected` is false.

    Args:
        robot: a robot whose `connect` was called.
        opened: whether `connect` succeeded. If not, and the robot is not connected, the error of `disconnect` may only
            repeat that; but a part of the robot may be powered.
    """
    try:
        opened = opened or robot.is_connected
    except Exception:  # whatever a driver raises
        opened = True
    try:
        robot.disconnect()
    except BaseException as error:  # SystemExit of a driver, too
        if not opened:
            return "it may still be powered"
        return f"the robot was not disconnected: {type_and_text(error)}"
    return ""


@dataclass(frozen=True)
class FeatureMap:
    """A policy's observation keys and action dimensions, as features of a robot.

    Attributes:
        observations: features of each key: its scalars in order, or the one feature that is an array.
        spec: the keys that the policy reads.
        actions: feature of each action dimension.
        task: instruction in words, for policies that read one.
    """

    observations: Mapping[str, tuple[str, ...]]
    spec: ObservationSpec
    actions: tuple[str, ...]
    task: str = ""

    def frame(self, reading: Reading) -> Frame:
        """Return the policy's arrays, by key, of a reading.

        Raises:
            RunError: If a feature is missing, is no finite number or array of them, has another shape than the key, or is
                beyond the range of an image.
        """
        return {key: self._array(key, reading) for key in self.spec.shapes}

    def command(self, action: Array) -> Command:
        """Return an action (dim,) as the robot takes it."""
        return dict(zip(self.actions, action.tolist(), strict=True))

    def position(self, reading: Reading) -> Array:
        """Return the robot's position in the terms of its actions, (dim,).

        Raises:
            RunError: If a feature is no finite number.
        """
        return np.array([_shaped("the position", name, _numbers(name, reading[name]), ()) for name in self.actions])

    def action(self, command: Mapping[str, Any]) -> Array:
        """Return what `send_action` returned as an action (dim,)."""
        return np.array([float(command[name]) for name in self.actions])

    def _array(self, key: str, reading: Reading) -> Array:
        if key == TASK:
            return write_text(self.task, *self.spec.shapes[key])
        names, shape = self.observations[key], self.spec.shapes[key]
        missing = [name for name in names if name not in reading]
        if missing:
            raise RunError(f"the robot's observation lacks the feature {missing[0]!r} of {key!r}")
        values = [_numbers(name, reading[name]) for name in names]
        if key in self.spec.images and fits(values[0].shape, shape, image=True):
            try:
                return self.spec.conform(key, values[0])
            except InputError as error:
                raise RunError(f"the robot's {names[0]!r}: {error}") from None
        if len(values) == 1 and (values[0].ndim or np.prod(shape) != 1):
            return _shaped(key, names[0], values[0], shape)
        scalars = [_shaped(key, name, value, ()) for name, value in zip(names, values, strict=True)]
        return np.array(scalars, np.float64).reshape(shape)


def _numbers(name: str, value: Any) -> Array:
    """Return a feature as an array of finite numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.empty(0, object)
    if array.dtype.kind not in "biuf":
        raise RunError(f"the robot's {name!r} is {type(value).__name__}, not numbers")
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        raise RunError(f"{name} is {array[~finite][0]}: not a finite number")
    return array


def _shaped(key: str, name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """Return a value of this shape; it is never reshaped: numbers may be transposed."""
    if value.shape != shape:
        raise RunError(f"the robot's {name!r} has the shape {value.shape}; {key!r} takes {shape or 'a number'}")
    return value


def map_features(
    robot: Robot,
    spec: ObservationSpec,
    dim: int,
    observations: Mapping[str, Sequence[str]] | None = None,
    actions: Sequence[str] | None = None,
    task: str = "",
) -> FeatureMap:
    """Return the feature map of a policy and a robot.

    Args:
        robot: the robot, which need not be connected.
        spec: observations of the policy.
        dim: dimensions of the policy's actions.
        observations: features of a key K; by default the robot's array K, or its scalars K.0, K.1, ..., or those whose name
            fits by convention (`gpc.policy.names`). LeRobot's observation.state is all of a robot's scalars in their order.
        actions: a feature for each action dimension; by default all of the robot's, in its order.
        task: instruction in words.

    Raises:
        InputError: If a key or dimension has no feature; both sides are named.
    """
    offered, chosen, shapes = robot.observation_features, dict(observations or {}), spec.shapes
    unread = sorted(set(chosen) - set(shapes))
    if unread:
        raise InputError(f"robot.observations names {unread[0]!r}; the policy reads {', '.join(shapes)}")
    if TASK in shapes and not task:
        raise InputError("the policy reads an instruction; give it, as in 'task=\"push the block onto its goal\"'")
    chosen |= _by_convention(spec, offered, chosen)
    names = {key: tuple(chosen.get(key) or _default(key, shapes[key], offered)) for key in shapes if key != TASK}
    for key, features in names.items():
        _check_key(robot, key, spec, features)
    if TASK in shapes:
        write_text(task, *shapes[TASK])
    return FeatureMap(names, spec, _check_actions(robot, dim, actions), task)


def _by_convention(
    spec: ObservationSpec, offered: Mapping[str, Any], chosen: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Return the features of keys that fit by convention, after a notice."""
    arrays = {name: tuple(kind) for name, kind in offered.items() if isinstance(kind, tuple | list)}
    scalars = tuple(name for name in offered if name not in arrays)
    groups: dict[str, tuple[str, ...]] = {name: (name,) for name in arrays}
    for name in scalars:
        base, _, number = name.rpartition(".")
        if number.isdecimal():
            groups[base] = (*groups.get(base, ()), name)
    sizes = {name: arrays.get(name, (len(group),)) for name, group in groups.items()}
    left = {key: shape for key, shape in spec.shapes.items() if key not in chosen and key not in offered}
    wanted = ObservationSpec(left, spec.n_obs_steps, [key for key in spec.images if key in left])
    named = {key: groups[name] for key, name in fitting_names(wanted, sizes, "robot.observations={{{}: [{}]}}").items()}
    if LEROBOT_STATE in left.keys() - named.keys() - groups.keys() and left[LEROBOT_STATE] == (len(scalars),):
        named[LEROBOT_STATE] = scalars
    if named:
        notice_once(describe_names({key: ", ".join(features) for key, features in named.items()}))
    return named


def _default(key: str, shape: tuple[int, ...], offered: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the features of a key that no configuration maps."""
    return (key,) if key in offered else tuple(f"{key}.{i}" for i in range(int(np.prod(shape))))


def _check_key(robot: Robot, key: str, spec: ObservationSpec, features: tuple[str, ...]) -> None:
    offered, shape = robot.observation_features, spec.shapes[key]
    missing = [name for name in features if name not in offered]
    if missing:
        raise InputError(
            f"{robot.name} has no feature {missing[0]!r} for the policy's {key!r} {shape}; it has "
            f"{', '.join(offered)}; name them, as in 'robot.observations={{{key}: [FEATURE, ...]}}'"
        )
    _check_once(f"robot.observations: {key!r}", features)
    arrays = [tuple(offered[name]) for name in features if isinstance(offered[name], tuple | list)]
    size = arrays[0] if arrays and len(features) == 1 else (len(features),)
    same = fits(size, shape, key in spec.images) if arrays else len(features) == int(np.prod(shape))
    if not same or len(arrays) > 1 or (arrays and len(features) > 1):
        raise InputError(f"the policy's {key!r} is {shape}, {robot.name}'s {', '.join(features)} make {size}")


def _check_actions(robot: Robot, dim: int, actions: Sequence[str] | None) -> tuple[str, ...]:
    offered = robot.action_features
    chosen = tuple(offered if actions is None else actions)
    unknown = [name for name in chosen if name not in offered]
    if unknown:
        raise InputError(f"{robot.name} has no action {unknown[0]!r}; it has {', '.join(offered)}")
    _check_once("robot.actions", chosen)
    if len(chosen) != dim:
        raise InputError(
            f"the policy acts in {dim} dimensions, {robot.name} in {len(chosen)}: {', '.join(chosen)}; name the policy's, "
            "as in 'robot.actions=[FEATURE, ...]'"
        )
    return chosen


def _check_once(key: str, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{key} names the feature {twice[0]!r} twice; each dimension needs a feature of its own")
