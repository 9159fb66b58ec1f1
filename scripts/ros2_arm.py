"""A simulated arm on ROS 2, and how well `gpc.robots.over_ros2` talks to it from another process.

python scripts/ros2_arm.py arm --joints shoulder elbow
python scripts/ros2_arm.py measure --seconds 60 --out docs/results/ros2.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Duration, Time
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from gpc.bridge.robot import Robot

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "wrist_3")
STATES, COMMANDS, PICTURES = "/joint_states", "/joint_trajectory_controller/joint_trajectory", "/camera/image_raw"
PICTURE = np.stack([*np.indices((4, 6)), np.full((4, 6), 200)], -1).astype(np.uint8)  # (height, width, 3), RGB
PADDING = 5  # bytes after each row of a picture, as some drivers send
STIFFNESS = 40.0  # of the joints, rad / s


class ArmNode(Node):
    """Critically damped second-order joints that follow straight lines to targets.

    Publishes joint states, each with its number as frame_id, and records its commands.
    """

    def __init__(self, context: rclpy.Context, joints: Sequence[str], rate: float, encoding: str) -> None:
        super().__init__("arm", context=context)
        self.joints, self.dt, self.encoding = list(joints), 1 / rate, encoding
        self.position, self.velocity = np.zeros(len(joints)), np.zeros(len(joints))
        self.start, self.target, self.began, self.seconds = self.position, self.position, 0.0, 0.0
        self.commands: list[tuple[list[float], float, float]] = []  # positions, seconds to reach them, latency in ms
        self.count = 0
        self.states = self.create_publisher(JointState, STATES, qos_profile_sensor_data)
        self.pictures = self.create_publisher(Image, PICTURES, qos_profile_sensor_data)
        self.create_subscription(JointTrajectory, COMMANDS, self.follow, 10)
        self.create_timer(self.dt, self.advance)

    def follow(self, message: JointTrajectory) -> None:
        """Replace the trajectory by a new one, from the present reference."""
        latency = (self.get_clock().now() - Time.from_msg(message.header.stamp)).nanoseconds / 1e6
        (point,), order = message.points, [message.joint_names.index(joint) for joint in self.joints]
        seconds = Duration.from_msg(point.time_from_start).nanoseconds / 1e9
        self.commands.append((list(point.positions), seconds, latency))
        self.start, self.target = self.reference(), np.array(point.positions)[order]
        self.began, self.seconds = time.monotonic(), seconds

    def reference(self) -> np.ndarray:
        """Return the positions that the controller commands now."""
        passed = time.monotonic() - self.began
        share = passed / self.seconds if passed < self.seconds else 1.0
        return self.start + share * (self.target - self.start)

    def advance(self) -> None:
        """Advance the joints one step and publish; a picture at a tenth of the rate."""
        force = STIFFNESS**2 * (self.reference() - self.position) - 2 * STIFFNESS * self.velocity
        self.velocity = self.velocity + self.dt * force
        self.position = self.position + self.dt * self.velocity
        state = JointState(name=self.joints, position=self.position.tolist(), velocity=self.velocity.tolist())
        state.header.stamp, state.header.frame_id = self.get_clock().now().to_msg(), str(self.count)
        self.states.publish(state)
        if self.count % 10 == 0:
            self.pictures.publish(picture(self.encoding))
        self.count += 1


def picture(encoding: str) -> Image:
    """`PICTURE` as a message with padded rows."""
    height, width, _ = PICTURE.shape
    ordered = PICTURE if encoding == "rgb8" else PICTURE[:, :, ::-1]
    rows = np.pad(ordered.reshape(height, -1), ((0, 0), (0, PADDING)), constant_values=255)
    return Image(height=height, width=width, encoding=encoding, step=rows.shape[1], data=rows.tobytes())


class Listener(Node):
    """Keeps number, time of arrival and latency in ms of every joint state."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("listener", context=context)
        self.heard: list[tuple[int, float, float]] = []
        self.create_subscription(JointState, STATES, self.hear, qos_profile_sensor_data)

    def hear(self, message: JointState) -> None:
        latency = (self.get_clock().now() - Time.from_msg(message.header.stamp)).nanoseconds / 1e6
        self.heard.append((int(message.header.frame_id), time.monotonic(), latency))


@contextmanager
def context() -> Iterator[rclpy.Context]:
    """Return a ROS context without signal handlers."""
    ros = rclpy.Context()
    rclpy.init(args=[], context=ros, signal_handler_options=SignalHandlerOptions.NO)
    try:
        yield ros
    finally:
        ros.try_shutdros()


@contextmanager
def spinning(node: Node) -> Iterator[None]:
    """Run a node in a separate thread."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    over = Event()

    def spin() -> None:
        while not over.is_set():
            executor.spin_once(timeout_sec=0.1)

    thread = Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        executor.shutdown()
        node.destroy_node()


def arm(joints: Sequence[str], rate: float, encoding: str) -> None:
    """Run the arm until stdin ends; then print its commands and its position."""
    with context() as ros:
        node = ArmNode(ros, joints, rate, encoding)
        with spinning(node):
            print("ready", flush=True)
            sys.stdin.read()
        print(json.dumps({"commands": node.commands, "position": node.position.tolist()}))


@contextmanager
def arm_process(joints: Sequence[str], rate: float = 250.0, encoding: str = "rgb8") -> Iterator[subprocess.Popen[str]]:
    """Run the arm in a separate process; `communicate` ends it."""
    command = [sys.executable, __file__, "arm", "--joints", *joints, "--rate", str(rate), "--encoding", encoding]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        try:
            process.communicate(timeout=5)  # killed, it would leave its shared memory behind
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def measure(seconds: float, rate: float, states: float) -> str:
    """Drive the arm through `Ros2Robot` on this machine; a report in Markdown."""
    from gpc.robots.over_ros2 import (
        Ros2Robot,
        Ros2RobotConfig,
    )  # LeRobot takes seconds to load, and the arm needs none of it

    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    robot = Ros2Robot(Ros2RobotConfig(joints=list(JOINTS), rate=rate, states=STATES, commands=COMMANDS))
    with arm_process(JOINTS, states) as process, context() as ros:
        listener = Listener(ros)
        with spinning(listener):
            robot.connect()
            sent = drive(robot, seconds, rate)
            robot.disconnect()
            time.sleep(0.5)
        report = json.loads(process.communicate()[0])
    commands, states_ = ([latency for *_, latency in rows] for rows in (report["commands"], listener.heard))
    (first, begin, _), (last, end, _) = listener.heard[0], listener.heard[-1]
    rows = [
        row("commands", rate, sent, commands),
        row("joint states", (last - first) / (end - begin), last - first + 1, states_),
    ]
    return "\n".join([*heading(seconds), *rows, ""])


def drive(robot: Robot, seconds: float, rate: float) -> int:
    """Send sines on absolute deadlines; return the number of messages."""
    n, began = round(seconds * rate), time.monotonic()
    for i in range(n):
        time.sleep(max(0.0, began + i / rate - time.monotonic()))
        robot.get_observation()
        robot.send_action({name: 0.5 * np.sin(i / rate + j) for j, name in enumerate(robot.action_features)})
    return n + 1


def heading(seconds: float) -> list[str]:
    return [
        "# ROS 2: what is lost, and how long it takes\n",
        f"`python scripts/ros2_arm.py measure`: an arm of {len(JOINTS)} joints in one process, `gpc.robots.over_ros2` in another,",
        f"both on this machine, for {seconds:g} s. {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f};",
        f"rclpy {version('rclpy')}, {rclpy.get_rmw_implementation_identifier()}. Latency: from the stamp in a header to the",
        "subscriber's callback, so it includes Python at both ends. Commands are reliable, joint states best effort; what never",
        "arrived is lost.\n",
        "| messages | a second | sent | lost | p50 ms | p99 ms | max ms |",
        "|---|---|---|---|---|---|---|",
    ]


def row(what: str, rate: float, sent: int, latency: Sequence[float]) -> str:
    figures = " | ".join(f"{ms:.2f}" for ms in np.percentile(latency, [50, 99, 100]))
    return f"| {what} | {rate:.0f} | {sent} | {sent - len(latency)} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    alone = modes.add_parser("arm", help="be the arm until stdin ends")
    alone.add_argument("--joints", nargs="+", default=JOINTS)
    alone.add_argument("--rate", type=float, default=250.0, help="joint states a second")
    alone.add_argument("--encoding", choices=("rgb8", "bgr8"), default="rgb8", help="of its pictures")
    both = modes.add_parser("measure", help="drive the arm from another process")
    both.add_argument("--seconds", type=float, default=60.0)
    both.add_argument("--rate", type=float, default=100.0, help="commands a second")
    both.add_argument("--states", type=float, default=250.0, help="joint states a second")
    both.add_argument("--out", type=Path, help="write the report here, too")
    args: Any = parser.parse_args()
    if args.mode == "arm":
        return arm(args.joints, args.rate, args.encoding)
    report = measure(args.seconds, args.rate, args.states)
    print(report)
    if args.out:
        args.out.write_text(report)


if __name__ == "__main__":
    main()
