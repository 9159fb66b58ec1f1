"""A ROS 2 arm as a robot, over real topics: the arm is another process."""

import json
import os
import sys
import time

import numpy as np
import pytest
import zarr
from toy_robots import Line

from gpc.commands.config import load_config
from gpc.commands.deploy import deploy_from, robot_from
from gpc.errors import InputError
from gpc.inert import Console

pytest.importorskip("lerobot")
pytest.importorskip("rclpy", reason="needs ROS 2")

from ros2_arm import PICTURE, arm_process  # it needs ROS 2

from gpc.robots.over_ros2 import ImageTopic, Ros2Robot, Ros2RobotConfig
from gpc.testing.robot import check_robot

JOINTS = ["x", "y"]
FRONT = {"front": ImageTopic("/camera/image_raw", *PICTURE.shape[:2])}


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """A ROS of this test's own."""
    monkeypatch.setenv("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path))


@pytest.fixture
def arm():
    with arm_process(JOINTS) as process:
        yield process


@pytest.fixture
def robot():
    made = Ros2Robot(Ros2RobotConfig(joints=JOINTS, rate=20, timeout=0.5, images=FRONT))
    yield made
    if made.is_connected:
        made.disconnect()


def ended(arm):
    """What the arm was told, as (positions, seconds), and where it is in the end."""
    report = json.loads(arm.communicate()[0])
    return [(positions, seconds) for positions, seconds, _ in report["commands"]], report["position"]


def where(robot):
    reading = robot.get_observation()
    return [reading["x.pos"], reading["y.pos"]]


def test_it_sees_the_arm_and_the_arm_follows(arm, robot):
    robot.connect()
    assert robot.observation_features == {"x.pos": float, "y.pos": float, "front": (4, 6, 3)}
    assert where(robot) == [0.0, 0.0]
    np.testing.assert_array_equal(robot.get_observation()["front"], PICTURE)
    path = [[0.01 * i, -0.02 * i] for i in range(1, 21)]
    for x, y in path:
        assert robot.send_action({"y.pos": y, "x.pos": x}) == {"x.pos": x, "y.pos": y}
        time.sleep(0.05)
    time.sleep(0.5)
    assert where(robot) == pytest.approx(path[-1], abs=1e-3)
    robot.disconnect()
    told, position = ended(arm)
    assert told[:-1] == [(point, pytest.approx(0.05)) for point in path]  # all, in order, each within a period
    assert told[-1][0] == path[-1]  # and the last one holds it there
    assert position == pytest.approx(told[-1][0], abs=1e-3)


def test_it_keeps_the_contract(arm, robot):
    check_robot(robot, steps=10, deadline=0.5)
    told, _ = ended(arm)
    assert {tuple(positions) for positions, _ in told} == {(0.0, 0.0)}  # it is told to stay


def test_disconnecting_in_motion_holds_the_arm_at_its_last_target(arm, robot):
    robot.connect()
    robot.send_action({"x.pos": 0.3, "y.pos": 0.1})
    while where(robot)[0] < 0.1:
        time.sleep(0.01)
    robot.disconnect()  # what is read here was checked by no limit
    time.sleep(0.5)
    told, position = ended(arm)
    assert [positions for positions, _ in told] == [[0.3, 0.1]] * 2
    assert position == pytest.approx([0.3, 0.1], abs=0.05)


def test_who_sent_nothing_says_nothing_when_it_leaves(arm, robot):
    robot.connect()
    robot.disconnect()
    time.sleep(0.2)
    assert ended(arm)[0] == []


def test_pictures_in_bgr_arrive_as_rgb(robot):
    with arm_process(JOINTS, encoding="bgr8"):
        robot.connect()
        np.testing.assert_array_equal(robot.get_observation()["front"], PICTURE)


def test_a_dead_arm_is_no_observation_and_takes_no_action(arm, robot):
    robot.connect()
    robot.send_action({"x.pos": 0.0, "y.pos": 0.0})
    arm.kill()
    arm.wait()
    time.sleep(0.6)
    with pytest.raises(TimeoutError, match=r"the position of [xy] is 0\.\d+ s old \(timeout 0.5 s\)"):
        robot.get_observation()
    robot.disconnect()
    assert not robot.is_connected


def test_what_is_missing_is_named(robot, monkeypatch):
    monkeypatch.setattr("gpc.robots.over_ros2.CONNECT_WITHIN", 0.3)
    with pytest.raises(TimeoutError, match=r"no position of x, y on /joint_states within 0.3 s"):
        robot.connect()
    assert not robot.is_connected
    monkeypatch.setattr("gpc.robots.over_ros2.CONNECT_WITHIN", 3.0)
    with arm_process(["x", "z"]), pytest.raises(TimeoutError, match="no position of y on"):
        robot.connect()


def test_a_picture_of_another_size_is_refused(arm, robot):
    robot.config.images["front"] = ImageTopic("/camera/image_raw", 480, 640)
    robot.connect()
    with pytest.raises(ValueError, match="front publishes rgb8 4 x 6; expected rgb8 or bgr8 480 x 640"):
        robot.get_observation()


def test_what_is_not_finite_is_never_sent(arm, robot):
    robot.connect()
    with pytest.raises(ValueError, match="must be finite"):
        robot.send_action({"x.pos": float("nan"), "y.pos": 0.0})
    robot.disconnect()
    assert ended(arm)[0] == []


def deployed(tmp_path, *keys):
    own = ["robot=ros2", "robot.settings.joints=[x,y]", "robot.observations={state: [x.pos, y.pos]}", "fps=20"]
    config = load_config("deploy", [*own, "safety.velocity=1", "seconds=2", "watchdog.observation_deadline=1", *keys])
    return deploy_from(config, Line(speed=0.005), robot_from(config), tmp_path / "deployed", Console(quiet=True))


def test_gpc_deploy_drives_it(arm, tmp_path):
    outcome = deployed(tmp_path, "mode=live")
    assert (outcome.reason, outcome.code) == ("the time is over", 0)
    told, position = ended(arm)
    assert len(told) > 20
    assert {seconds for _, seconds in told} == {0.05}
    assert position == pytest.approx(told[-1][0], abs=0.01)
    assert min(position) > 0.05


def test_a_dry_run_sends_nothing(arm, tmp_path):
    outcome = deployed(tmp_path, "mode=dry-run")
    assert (outcome.reason, outcome.code) == ("the time is over", 0)
    command = zarr.open_group(tmp_path / "deployed/episode.zarr", mode="r")["stream/asked"]
    assert np.isfinite(command).all(1).sum() > 20
    assert ended(arm) == ([], [0.0, 0.0])


@pytest.mark.parametrize("settings", [{"joints": []}, {"joints": ["x", "x"]}, {"rate": 0}, {"timeout": -1}])
def test_settings_are_checked(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Ros2RobotConfig(**{"joints": ["x"], "rate": 10} | settings)


def test_without_ros_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(InputError, match=r"\[ros2\]"):
        Ros2Robot(Ros2RobotConfig(joints=["x"], rate=10))
