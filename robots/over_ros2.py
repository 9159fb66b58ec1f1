"""An arm on ROS 2 as a robot of LeRobot: joint states and pictures come in, joint trajectories go out.

The arm's own controller (joint_trajectory_controller, or its maker's) follows the trajectories; no driver runs in this process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Event, Thread
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from gpc.errors import InputError
from gpc.installation import install
from gpc.types import Array

ENCODINGS = {"rgb8": 1, "bgr8": -1}  # the step through the channels that makes it RGB
CONNECT_WITHIN = 5.0  # seconds
ACKNOWLEDGE_WITHIN = 1.0  # seconds for the controller to acknowledge the trajectory that holds


@dataclass(frozen=True)
class ImageTopic:
    """Topic of a camera: sensor_msgs/Image in rgb8 or bgr8, (height, width, 3)."""

    topic: str
    height: int
    width: int


@RobotConfig.register_subclass("gpc_ros2")
@dataclass(kw_only=True)
class Ros2RobotConfig(RobotConfig):
    """Settings of `Ros2Robot`; positions are in radians or metres, as on the topics.

    Attributes:
        joints: names of the arm's joints, in the order of the actions.
        rate: calls of `send_action` in a second; an action is to be reached within 1 / `rate` seconds. `gpc deploy` sets it
            (`Ros2Robot.set_rate`); LeRobot's own commands need it.
        states: topic of sensor_msgs/JointState; several nodes may each publish some joints.
        commands: topic of trajectory_msgs/JointTrajectory.
        images: topics of the cameras, by name.
        timeout: seconds after which a joint state or a picture is no observation.
    """

    joints: list[str]
    rate: float | None = None
    states: str = "/joint_states"
    commands: str = "/joint_trajectory_controller/joint_trajectory"
    images: dict[str, ImageTopic] = field(default_factory=dict)
    timeout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.joints or len(set(self.joints)) < len(self.joints):
            raise InputError(f"robot: joints={self.joints} must be the names of one joint or more, each once")
        if not (0 < (1.0 if self.rate is None else self.rate) < np.inf and 0 < self.timeout < np.inf):
            raise InputError(f"robot: rate={self.rate} and timeout={self.timeout:g} must be positive")


class Ros2Robot(Robot):
    """Reads and sends `JOINT.pos` of each joint, and reads cameras by name.

    `disconnect` sends the last target once more, if there is one: nothing is ever sent that was not commanded.
    """

    config_class = Ros2RobotConfig
    name = "gpc_ros2"

    def __init__(self, config: Ros2RobotConfig) -> None:
        self._link: _Link | None = None
        if any(find_spec(package) is None for package in ("rclpy", "sensor_msgs", "trajectory_msgs")):
            raise InputError(f"rclpy is not installed; source a ROS 2 of this Python version, or {install('ros2')}")
        super().__init__(config)
        self.config, self._rate = config, config.rate

    def set_rate(self, rate: float, fps: float) -> None:
        """Take the number of actions that are sent in a second; `fps` is ignored."""
        self._rate = rate

    @property
    def observation_features(self) -> dict[str, Any]:
        """`JOINT.pos` of each joint, and the shape of each camera's pictures."""
        cameras = {name: (image.height, image.width, 3) for name, image in self.config.images.items()}
        return self.action_features | cameras

    @property
    def action_features(self) -> dict[str, Any]:
        """`JOINT.pos` of each joint, in their order."""
        return {f"{joint}.pos": float for joint in self.config.joints}

    @property
    def is_connected(self) -> bool:
        """Whether the node of this robot runs."""
        return self._link is not None

    @property
    def is_calibrated(self) -> bool:
        """True: the arm's driver calibrates it."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Return when each joint and picture was received once and a controller listens.

        Raises:
            TimeoutError: If a joint, a picture or the controller is missing; the first is named.
            InputError: If the rate is not set.
        """
        if self._link is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected")
        if self._rate is None:
            raise InputError("robot.rate is not set; give the number of actions in a second, as in --robot.rate=30")
        link = _Link(self.config, 1 / self._rate)
        try:
            end = time.monotonic() + CONNECT_WITHIN
            while missing := link.missing():
                if time.monotonic() > end:
                    raise TimeoutError(f"{missing} within {CONNECT_WITHIN:g} s; is ROS_DOMAIN_ID the arm's?")
                time.sleep(0.01)
        except BaseException:
            link.close()
            raise
        self._link = link

    def get_observation(self) -> dict[str, Any]:
        """Return what was received last.

        Raises:
            TimeoutError: If it is too old.
            ValueError: If a picture has another encoding or size than configured.
        """
        link = self._connected()
        positions = dict(zip(self.action_features, link.positions(), strict=True))
        return positions | {name: link.picture(name) for name in self.config.images}

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Publish a trajectory of one point.

        Raises:
            ConnectionError: If no controller listens any more.
            ValueError: If a number is not finite.
        """
        link, sent = self._connected(), {name: float(action[name]) for name in self.action_features}
        if not np.isfinite(list(sent.values())).all():
            raise ValueError(f"an action must be finite, not {dict(action)}")
        link.command(list(sent.values()))
        return sent

    def disconnect(self) -> None:
        """Hold the arm, and end the node."""
        link, self._link = self._connected(), None
        link.close()

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def _connected(self) -> _Link:
        if self._link is None:
            raise DeviceNotConnectedError(f"{self} is not connected; call connect()")
        return self._link


class _Link:
    """A node that spins in its own thread, and the last messages with their arrival."""

    def __init__(self, config: Ros2RobotConfig, period: float) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
        from rclpy.signals import SignalHandlerOptions
        from sensor_msgs.msg import Image, JointState
        from trajectory_msgs.msg import JointTrajectory

        self.config, self._period = config, period
        self._target: Sequence[float] | None = None  # the last command
        self._joints: dict[str, tuple[float, float]] = {}
        self._images: dict[str, tuple[float, Any]] = {}
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)  # signals are gpc's
        self._node = rclpy.create_node("gpc", context=self._context, start_parameter_services=False)
        newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)  # an old command is useless
        self._commands = self._node.create_publisher(JointTrajectory, config.commands, newest)
        self._node.create_subscription(JointState, config.states, self._take_joints, qos_profile_sensor_data)
        for name, image in config.images.items():
            self._node.create_subscription(Image, image.topic, self._image_callback(name), qos_profile_sensor_data)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._leaving = Event()
        self._thread = Thread(target=self._spin, name="gpc-ros2", daemon=True)
        self._thread.start()

    def missing(self) -> str:
        """Return what was not received yet, or that no controller listens; else empty."""
        joints = [joint for joint in self.config.joints if joint not in self._joints]
        if joints:
            return f"no position of {', '.join(joints)} on {self.config.states}"
        for name, image in self.config.images.items():
            if name not in self._images:
                return f"no picture of {name} on {image.topic}"
        return "" if self._has_listener() else f"no controller listens to {self.config.commands}"

    def positions(self) -> list[float]:
        """Return the positions of the joints in order."""
        joints = self._joints
        oldest = min(self.config.joints, key=lambda joint: joints[joint][0])
        self._check_age(joints[oldest][0], f"the position of {oldest}")
        return [joints[joint][1] for joint in self.config.joints]

    def picture(self, name: str) -> Array:
        """Return the picture (height, width, 3) of a camera, in RGB."""
        at, message = self._images[name]
        self._check_age(at, f"the picture of {name}")
        return _rgb(name, message, self.config.images[name])

    def command(self, positions: Sequence[float]) -> None:
        """Command positions that are to be reached within a period from now."""
        from rclpy.duration import Duration
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        if not self._has_listener():
            raise ConnectionError(f"no controller listens to {self.config.commands} any more")
        within = Duration(seconds=self._period).to_msg()
        point = JointTrajectoryPoint(positions=positions, time_from_start=within)
        message = JointTrajectory(joint_names=self.config.joints, points=[point])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._commands.publish(message)
        self._target = positions

    def close(self) -> None:
        """Hold the arm at the last target, if there is one, and end the node."""
        try:
            if self._target is not None:
                with suppress(ConnectionError):  # then its controller keeps the last target
                    self._hold(self._target)
        finally:
            self._leaving.set()
            self._thread.join()  # before the objects that it waits on are destroyed
            self._executor.shutdown()
            self._node.destroy_node()
            self._context.try_shutdown()

    def _hold(self, target: Sequence[float]) -> None:
        from rclpy.duration import Duration

        self.command(target)
        self._commands.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_WITHIN))

    def _spin(self) -> None:
        while not self._leaving.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def _take_joints(self, message: Any) -> None:
        now = time.monotonic()
        self._joints = self._joints | {
            name: (now, at) for name, at in zip(message.name, message.position, strict=False)
        }

    def _image_callback(self, name: str) -> Any:
        def receive(message: Any) -> None:
            self._images[name] = (time.monotonic(), message)

        return receive

    def _has_listener(self) -> bool:
        return bool(self._commands.get_subscription_count())

    def _check_age(self, at: float, what: str) -> None:
        if (age := time.monotonic() - at) > self.config.timeout:
            raise TimeoutError(f"{what} is {age:.3f} s old (timeout {self.config.timeout:g} s)")


def _rgb(name: str, message: Any, expected: ImageTopic) -> Array:
    """Return the picture of a sensor_msgs/Image, whose rows may be padded.

    Raises:
        ValueError: If it has another encoding or size than configured.
    """
    height, width = expected.height, expected.width
    if message.encoding not in ENCODINGS or (message.height, message.width) != (height, width):
        raise ValueError(
            f"{name} publishes {message.encoding} {message.height} x {message.width}; "
            f"expected {' or '.join(ENCODINGS)} {height} x {width}"
        )
    rows = np.frombuffer(message.data, np.uint8).reshape(height, message.step)[:, : 3 * width]
    return rows.reshape(height, width, 3)[:, :, :: ENCODINGS[message.encoding]].copy()
