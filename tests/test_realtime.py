"""The control loop on the real clock: every fault ends in hold or stop within its time."""

import os
import pty
import signal
import sys
import threading
import time

import numpy as np
import pytest
from running import PERIOD, SLACK, WATCHDOG, flown, until
from toy_robots import Arm, FarArm, Line

from gpc.bridge.controller import HOLD, OK, STOPPED
from gpc.bridge.loop import DRY_RUN, SHADOW
from gpc.bridge.realtime import LoopTimes
from gpc.bridge.safety import SafetyLimits
from gpc.bridge.stop import StopSignal
from gpc.errors import InputError, RunError


def ended_well(arm, kept, after):
    """Held, then stopped, in time; what was sent afterwards is the last target; then disconnected."""
    held, stopped = kept.first(HOLD), kept.first(STOPPED)
    assert held.at <= after + PERIOD + SLACK
    assert WATCHDOG.stop_after < stopped.at - held.at <= WATCHDOG.stop_after + PERIOD + SLACK
    assert not arm.is_connected
    assert 0 < arm.disconnected_at - stopped.at < SLACK
    resting = {action[1:] for action in arm.sent if action[0] > held.at + 0.001}
    assert len(resting) == 1


def test_an_episode_moves_the_arm_from_one_thread_and_ends_in_time():
    arm, source = Arm(), Line()
    _, kept, timing, stop_signal = flown(arm, source, seconds=1.0)
    assert (stop_signal.reason, stop_signal.code) == ("the time is over", 0)
    assert [event.kind for event in kept.events] == [OK, STOPPED]
    assert len(arm.threads) == 1
    assert arm.threads != {threading.get_ident()}
    assert not arm.is_connected
    assert arm.position[0] > 0.03
    moving = [record for record in kept.periods if record.mode == OK]
    sent = [record.sent for record in kept.periods if not np.isnan(record.command).any()]
    assert len(sent) > 40  # all but the first, which waited for a chunk: what is only read is not sent
    np.testing.assert_array_equal(sent, [action[1:] for action in arm.sent])
    assert {record.frame is not None for record in kept.periods} == {True}
    assert max(record.age for record in moving) < 0.4
    assert len(timing.late) + timing.missed == pytest.approx(1.0 / PERIOD, abs=3)
    until(lambda: source.closed)  # by its own thread


def test_deadlines_do_not_drift_and_missed_ones_are_counted():
    def slow(arm):
        if arm.reads in (20, 30):
            time.sleep(3.5 * PERIOD)

    _, kept, timing, _ = flown(Arm(slow), Line(), seconds=1.0)
    assert 4 <= timing.missed <= 8
    begins = np.array([record.at for record in kept.periods]) - kept.periods[0].at
    late = np.array([record.late for record in kept.periods])
    off = (begins - late) / PERIOD
    assert np.sort(np.abs(off - np.round(off)))[-5] < 0.25  # on the grid, also after the misses, but for the slow reads
    summary = timing.summary()
    assert summary["missed_deadlines"] == timing.missed
    assert 0 <= summary["jitter_ms"]["p50"] <= summary["jitter_ms"]["p99"] <= summary["jitter_ms"]["max"]


@pytest.mark.parametrize("mode", [DRY_RUN, SHADOW])
def test_only_live_ever_sends(mode):
    class Untouched(Arm):
        def send_action(self, action):
            raise AssertionError("an action was sent")

    arm = Untouched()
    _, kept, _, stop_signal = flown(arm, Line(), seconds=0.6, mode=mode)
    assert stop_signal.reason == "the time is over"
    command = np.array([record.command for record in kept.periods if record.mode == OK])
    assert len(command) > 10
    assert np.isfinite(command).all()
    sent = np.array([record.sent for record in kept.periods if record.mode == OK])
    assert (sent == 0).all() if mode == SHADOW else np.isnan(sent).all()


def test_an_inference_that_hangs_ends_in_hold_within_the_deadline_then_in_a_stop():
    command, release = [], threading.Event()

    def hang(request):
        if request.number == 3:
            command.append(time.monotonic())
            release.wait(10)

    arm = Arm()
    _, kept, _, _ = flown(arm, Line(trouble=hang))
    release.set()
    ended_well(arm, kept, command[0] + WATCHDOG.deadline)


@pytest.mark.parametrize(
    ("chunk", "why"),
    [
        (np.full((16, 2), np.nan), "is nan"),
        (np.full((16, 2), np.inf), "is inf"),
        (np.full((16, 2), 0.9), "the velocity of x.pos, 0 actions from now"),
        (np.full((16, 2), 7.0), "the position of x.pos"),
        (np.zeros((3, 2)), "not numbers (16, 2)"),
    ],
)
def test_a_bad_chunk_is_refused_the_old_plan_used_up_and_the_robot_held(chunk, why):
    arm, bad = Arm(), []

    def damage(request):
        if request.number >= 3:
            bad.append(time.monotonic())
            return chunk
        return None

    _, kept, _, _ = flown(arm, Line(trouble=damage))
    ended_well(arm, kept, bad[0] + 8 * PERIOD)  # what was left of the old plan
    assert why in kept.first("refused").text
    assert why in kept.first(HOLD).text


def test_a_planner_that_raises_is_asked_again():
    def fail(request):
        if 3 <= request.number < 6:
            raise RunError("out of memory")

    arm = Arm()
    _, kept, _, stop_signal = flown(arm, Line(trouble=fail), seconds=1.2)
    assert stop_signal.reason == "the time is over"
    assert [event.kind for event in kept.events] == [OK, "refused", "refused", "refused", STOPPED]
    assert kept.first("refused").text == "chunk 3: RunError: out of memory"


def test_an_observation_that_fails_ends_in_hold_then_in_a_stop_and_says_why():
    failed = []

    def unplug(arm):
        if arm.reads > 20:
            failed.append(time.monotonic())
            raise ConnectionError("no status packet")

    arm = Arm(unplug)
    _, kept, _, _ = flown(arm, Line())
    ended_well(arm, kept, failed[0] + WATCHDOG.observation_deadline)
    assert kept.first("unread").text == "ConnectionError: no status packet"
    assert "no observation for" in kept.first(STOPPED).text
    assert "no status packet" in kept.first(STOPPED).text


def test_a_read_that_fails_for_a_moment_is_no_hold():
    def glitch(arm):
        if arm.reads in (20, 21):
            raise ConnectionError("no status packet")

    _, kept, _, _ = flown(Arm(glitch), Line(), seconds=0.8)
    assert [event.kind for event in kept.events] == [OK, "unread", STOPPED]


def test_a_driver_that_hangs_is_given_up_and_what_it_does_later_is_not_followed_by_an_action():
    release, hung = threading.Event(), []

    def hang(arm):
        if arm.reads > 20:
            hung.append(time.monotonic())
            release.wait(10)

    arm = Arm(hang)
    stop_signal = StopSignal()
    with pytest.raises(RunError, match=r"the robot has not answered for .* given up after 0.3 s"):
        flown(arm, Line(), stop_signal=stop_signal, disconnect_within=0.3)
    gave_up = time.monotonic() - hung[0]
    assert gave_up < WATCHDOG.observation_deadline + WATCHDOG.stop_after + 0.3 + 4 * SLACK
    sent = len(arm.sent)
    release.set()
    time.sleep(5 * PERIOD)
    assert len(arm.sent) == sent
    assert not arm.is_connected


def test_a_camera_that_freezes_ends_in_hold_then_in_a_stop():
    froze = []

    def freeze(arm):
        if arm.reads > 30 and not arm.frozen:
            froze.append(time.monotonic())
            arm.frozen = True

    arm = Arm(freeze, camera=True)
    _, kept, _, _ = flown(arm, Line(camera=True))
    ended_well(arm, kept, froze[0] + WATCHDOG.frozen_after + PERIOD)
    assert "camera front has shown the same picture" in kept.first(HOLD).text


def test_a_robot_whose_process_dies_stops_at_once():
    died = []

    def kill(arm):
        time.sleep(0.6)
        died.append(time.monotonic())
        arm.process.kill()

    arm = FarArm()
    _, kept, _, _ = flown(arm, Line(), meanwhile=kill)
    stopped = kept.first(STOPPED)
    assert stopped.at - died[0] < WATCHDOG.observation_deadline + WATCHDOG.stop_after + PERIOD + SLACK
    assert "process is gone" in stopped.text or "Broken pipe" in stopped.text
    assert not arm.is_connected


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131), (signal.SIGTSTP, 148), (signal.SIGALRM, 142)],
)
def test_signals_end_in_a_hold_and_a_disconnected_robot(number, code):
    sent = []

    def signalled(arm):
        time.sleep(0.5)
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    arm = Arm()
    before = signal.getsignal(number)
    _, kept, _, stop_signal = flown(arm, Line(), meanwhile=signalled)
    assert (stop_signal.reason, stop_signal.code) == (number.name, code)
    assert kept.first(STOPPED).text == number.name
    assert arm.disconnected_at - sent[0] < 5 * PERIOD + SLACK
    resting = [action[1:] for action in arm.sent if action[0] >= kept.first(STOPPED).at]
    assert len(resting) >= 1
    assert len(set(resting)) == 1
    assert signal.getsignal(number) == before


def test_the_stop_key_on_a_terminal_stops(monkeypatch):
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs)
    monkeypatch.setattr(sys, "stdin", terminal)

    def request(arm):
        time.sleep(0.3)
        os.write(ours, b"x")  # no stop key
        time.sleep(0.2)
        os.write(ours, b" ")

    _, _, _, stop_signal = flown(Arm(), Line(), meanwhile=request)
    assert (stop_signal.reason, stop_signal.code) == ("the stop key", 130)
    terminal.close()
    os.close(ours)


def test_a_robot_that_is_not_calibrated_is_refused_with_the_command_that_mends_it():
    arm = Arm(calibrated=False)
    with pytest.raises(InputError, match=r"toy is not calibrated; run lerobot-calibrate --robot.type=toy"):
        flown(arm, Line())
    assert not arm.is_connected
    assert arm.sent == []


def test_nothing_moves_where_the_policy_cannot_give_its_first_chunk():
    def fail(request):
        raise RunError("no memory")

    arm = Arm()
    _, _, _, stop_signal = flown(arm, Line(trouble=fail))
    assert stop_signal.reason == "the policy gave no chunk: RunError: no memory"
    assert arm.sent == []
    assert not arm.is_connected


def test_a_robot_that_never_connects_is_given_up():
    class Deaf(Arm):
        def connect(self, calibrate=True):
            time.sleep(3)

    with pytest.raises(RunError, match=r"was not connected within 0.2 s; its driver was given up"):
        flown(Deaf(), Line(), connect_within=0.2, disconnect_within=0.2)


def test_a_robot_whose_camera_is_gone_is_disconnected_though_it_does_not_count_as_connected():
    class Blind(Arm):
        closed = False

        def connect(self, calibrate=True):
            super().connect(calibrate)
            self.is_connected = False  # as LeRobot's, if one of the cameras does not answer
            raise ConnectionError("no camera")

        def disconnect(self):
            self.closed = True
            super().disconnect()

    arm = Blind()
    with pytest.raises(RunError, match=r"the robot failed: ConnectionError: no camera$"):
        flown(arm, Line())
    assert arm.closed


class Stuck(Arm):
    def disconnect(self):
        super().disconnect()
        self.is_connected = True
        raise OSError("the port is busy")


def test_a_robot_that_cannot_be_disconnected_is_reported_beside_what_ended_the_episode():
    with pytest.raises(RunError, match=r"^the robot was not disconnected: OSError: the port is busy$"):
        flown(Stuck(), Line(), seconds=0.3)
    words = "run lerobot-calibrate .*; the robot was not disconnected: OSError: the port is busy"
    with pytest.raises(RunError, match=words):
        flown(Stuck(calibrated=False), Line())


def test_a_driver_that_is_given_up_and_cannot_be_disconnected_is_reported_with_both():
    release = threading.Event()
    arm = Stuck(lambda arm: arm.reads > 20 and release.wait(10))
    with pytest.raises(
        RunError, match=r"given up after 0.1 s; the robot was not disconnected: OSError: .*: cut its power"
    ):
        flown(arm, Line(), disconnect_within=0.1)
    release.set()


class HalfGone(Arm):
    """Of LeRobot: it is not connected, and `disconnect` raises before it reaches the motors, if its camera is gone."""

    def __init__(self, unplugged, **settings):
        super().__init__(**settings)
        self.unplugged = unplugged

    def connect(self, calibrate=True):
        super().connect(calibrate)
        if self.unplugged == "at first":
            self.is_connected = False
            raise ConnectionError("no camera")

    def send_action(self, action):
        if self.unplugged == "later" and len(self.sent) == 5:
            self.is_connected = False
            raise ConnectionError("no camera")
        return super().send_action(action)

    def disconnect(self):
        if not self.is_connected:
            raise RuntimeError("not connected")
        super().disconnect()


def test_a_disconnect_that_raises_counts_though_the_robot_is_not_connected():
    with pytest.raises(RunError, match=r"^the robot was not disconnected: RuntimeError: not connected$"):
        flown(HalfGone("later"), Line(), seconds=1)
    with pytest.raises(RunError, match=r"^the robot failed: ConnectionError: no camera; it may still be powered$"):
        flown(HalfGone("at first"), Line(), seconds=1)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_driver_that_exits_is_a_failure_not_an_end(error):
    def leave(arm):
        raise error(0)

    arm = Arm(leave)
    with pytest.raises(RunError, match=f"the robot failed: {error.__name__}"):
        flown(arm, Line(), seconds=0.5)
    assert not arm.is_connected


@pytest.mark.parametrize("looks", [0, 30])
def test_a_robot_whose_watch_fails_is_held_and_disconnected(looks):
    class Broken(StopSignal):
        def poll(self):
            self.looks = getattr(self, "looks", 0) + 1
            if self.looks > looks:
                raise MemoryError("no memory")

    arm, stop_signal = Arm(), Broken()
    with pytest.raises(MemoryError):
        flown(arm, Line(), stop_signal=stop_signal)
    assert arm.disconnected_at is not None
    assert stop_signal.reason == "the watch of the robot failed: MemoryError: no memory"
    assert bool(arm.sent) == bool(looks)
    sent = len(arm.sent)
    time.sleep(5 * PERIOD)
    assert len(arm.sent) == sent


class Ramp(Line):
    """Speeds up by 0.4 / s^2, counted in steps that were executed."""

    def sample(self, request):
        steps = request.step + self.actions.start + np.arange(self.actions.horizon)
        return np.repeat(0.2 * (PERIOD * np.maximum(steps, 0)[:, None]) ** 2, 2, 1)


def test_a_robot_that_brakes_for_longer_than_a_disconnect_may_take_is_not_given_up():
    arm = Arm()
    limits = SafetyLimits(position=[-1, 1], acceleration=0.5, actions="absolute").resolve(Line.actions, PERIOD)
    _, kept, _, stop_signal = flown(arm, Ramp(), seconds=0.8, limits=limits, disconnect_within=0.1)
    assert stop_signal.reason == "the time is over"
    braked = [action[1] for action in arm.sent if action[0] > kept.first(STOPPED).at]
    assert arm.disconnected_at - kept.first(STOPPED).at > 0.2
    assert np.abs(np.diff(braked, 2)).max() <= 0.5 * PERIOD**2 * 1.001
    assert braked[-1] == braked[-2]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), "long"])
def test_a_clock_has_positive_finite_times(seconds):
    for name in ("period", "seconds", "connect_within", "warmup_within", "disconnect_within"):
        with pytest.raises(InputError, match=f"{name}={seconds}"):
            LoopTimes(**{"period": PERIOD, name: seconds})
    with pytest.raises(InputError, match="connect_within=None"):
        LoopTimes(PERIOD, connect_within=None)
