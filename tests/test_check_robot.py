"""`check_robot` accepts robots that keep the contract and names the promise that a broken one breaks."""

import time

import numpy as np
import pytest
from toy_robots import Arm

from gpc.testing.robot import check_robot


class Kept(Arm):
    """The toy arm, which refuses what LeRobot's robots refuse."""

    def __init__(self):
        super().__init__(camera=True)

    def get_observation(self):
        self._needs_connection()
        return super().get_observation()

    def send_action(self, action):
        self._needs_connection()
        return super().send_action(action)

    def disconnect(self):
        self._needs_connection()
        super().disconnect()

    def _needs_connection(self):
        if not self.is_connected:
            raise ConnectionError("not connected")


def reading(**changed):
    """A robot whose observations are changed."""

    class Robot(Kept):
        def get_observation(self):
            found = super().get_observation() | changed
            return {name: value for name, value in found.items() if value is not None}

    return Robot


def sending(change):
    """A robot that returns something else than it sent."""

    class Robot(Kept):
        def send_action(self, action):
            return change(super().send_action(action))

    return Robot


def having(**attributes):
    return type("Robot", (Kept,), attributes)


def stuck(value):
    return property(lambda self: value, lambda self, new: None)


class OwnBuffer(Kept):
    picture = np.zeros((4, 4, 3), np.uint8)

    def get_observation(self):
        return super().get_observation() | {"front": self.picture}


class Ring(Kept):
    """Two pictures, filled in turn."""

    def __init__(self):
        super().__init__()
        self.pictures = [np.zeros((4, 4, 3), np.uint8) for _ in range(2)]

    def get_observation(self):
        found = super().get_observation()
        return found | {"front": self.pictures[self.reads % 2]}


class LateWriter(Kept):
    """It fills the array that it handed out last."""

    last = None

    def get_observation(self):
        found = super().get_observation()
        if self.last is not None:
            self.last += 1
        self.last = found["front"]
        return found


class Slow(Kept):
    def get_observation(self):
        time.sleep(0.06)
        return super().get_observation()


class SlowToMove(Kept):
    def send_action(self, action):
        time.sleep(0.06)
        return super().send_action(action)


class Meddler(Kept):
    def send_action(self, action):
        action["x.pos"] += 1
        return dict(action)


class Careless(Kept):
    def _needs_connection(self):
        pass

    def send_action(self, action):
        return dict(action)


class Moving(Kept):
    """It reads nothing when it is not connected, but would move."""

    def send_action(self, action):
        return dict(action)


class Clinging(Kept):
    def disconnect(self):
        pass


class Reviving(Kept):
    """A second `disconnect` connects it again."""

    def disconnect(self):
        self.is_connected = not self.is_connected


class Stalling(Kept):
    """A second `disconnect` waits for a driver that is gone."""

    def disconnect(self):
        if not self.is_connected:
            time.sleep(30)
        super().disconnect()


class Growing(Kept):
    looks = 0

    @property
    def observation_features(self):
        self.looks += 1
        return {f"x{i}": float for i in range(self.looks)}


BROKEN = [
    (having(observation_features={}), "observation_features must be a dict with one feature or more"),
    (having(action_features=["x.pos"]), "action_features must be a dict"),
    (having(action_features={"x.pos": int}), "action_features.'x.pos'. is .*neither float nor the shape"),
    (having(action_features={"x.pos": (2,)}), "action_features.'x.pos'. is .2,., neither float"),
    (having(observation_features={"front": (4, 0, 3)}), "observation_features.'front'. is .4, 0, 3."),
    (having(observation_features={3: float}), "the name 3 is not a word"),
    (Growing, "observation_features change"),
    (reading(**{"x.pos": None}), r"differ in \['x.pos'\]"),
    (reading(extra=1.0), r"differ in \['extra'\]"),
    (reading(**{"x.pos": float("nan")}), "'x.pos'. is nan, not finite"),
    (reading(**{"x.pos": "1.0"}), "'x.pos'. is a str, not a number"),
    (reading(**{"x.pos": np.zeros(1)}), "'x.pos'. is a ndarray, not a number"),
    (reading(front=[[0]]), "'front'. is a list, not an array"),
    (reading(front=np.zeros((3, 4, 4), np.uint8)), r"'front'. is \(3, 4, 4\), observation_features has \(4, 4, 3\)"),
    (reading(front=np.zeros((4, 4, 3))), "'front'. is a picture of float64, not of uint8"),
    (OwnBuffer, "'front'. is a buffer of the robot"),
    (Ring, "'front'. is a buffer of the robot"),
    (LateWriter, "'front'. is a buffer of the robot"),
    (Slow, r"get_observation\(\) took 0.0.* s, the deadline is 0.05 s"),
    (SlowToMove, r"send_action\(\) took 0.0.* s, the deadline is 0.05 s"),
    (Meddler, "changes its argument"),
    (sending(lambda sent: None), "returns a NoneType, not what was sent"),
    (sending(lambda sent: {"x.pos": 0.0}), r"action_features differ in \['y.pos'\]"),
    (sending(lambda sent: sent | {"x.pos": float("inf")}), "'x.pos'. is inf, not finite"),
    (Careless, r"get_observation\(\) raises nothing before connect"),
    (Moving, r"send_action\(\) raises nothing after disconnect"),
    (Clinging, r"is_connected is True after disconnect"),
    (Reviving, "is_connected is true after a second disconnect"),
    (Stalling, r"a second disconnect\(\) does not return within a second"),
    (having(is_connected=stuck(True)), "is_connected is True before connect"),
    (having(connect=lambda self, calibrate: None), "is_connected is False after connect"),
    (having(is_calibrated=stuck(None)), "is_calibrated is None, not a bool"),
]


def test_a_robot_that_keeps_the_contract():
    robot = Kept()
    check_robot(robot, deadline=0.05)
    assert {tuple(sent[1:]) for sent in robot.sent} == {(0.0, 0.0)}  # it stays where it is


def test_an_arm_that_sags_under_its_load_does_not_sink_step_by_step():
    class Sagging(Kept):
        def get_observation(self):
            found = super().get_observation()
            return found | {"x.pos": found["x.pos"] - 0.01}

    robot = Sagging()
    check_robot(robot, steps=20)
    assert robot.position == [-0.01, 0.0]


@pytest.mark.parametrize(("broken", "promise"), BROKEN, ids=[promise for _, promise in BROKEN])
def test_a_broken_robot_is_told_which_promise(broken, promise):
    robot = broken()
    with pytest.raises(AssertionError, match=rf"^{type(robot).__name__}: .*{promise}"):
        check_robot(robot, deadline=0.05)


def test_a_robot_that_fails_is_disconnected():
    robot = Slow()
    with pytest.raises(AssertionError):
        check_robot(robot, deadline=0.05)
    assert robot.disconnected_at is not None


def test_a_robot_that_does_not_say_where_it_is_needs_an_action():
    class Silent(Kept):
        def __init__(self):
            super().__init__()
            self.reports_position = False

    with pytest.raises(AssertionError, match="give an action that may be sent"):
        check_robot(Silent())
    robot = Silent()
    check_robot(robot, action={"x.pos": 0.1, "y.pos": 0.0}, steps=3)
    assert [sent[1:] for sent in robot.sent] == [(0.1, 0.0)] * 3
