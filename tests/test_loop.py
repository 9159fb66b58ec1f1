"""What is read from a robot, and when something is sent to it."""

import numpy as np
import pytest
from running import PERIOD, WATCHDOG, Kept, flown
from toy_robots import Arm, Line

from gpc.bridge.blending import RecedingHorizon
from gpc.bridge.chunk_source import reply_to
from gpc.bridge.clock import VirtualClock
from gpc.bridge.controller import HOLD, OK, STOPPED, ChunkController, ChunkSpec, Watchdog
from gpc.bridge.loop import LIVE, SHADOW, ControlLoop
from gpc.bridge.realtime import POLL, LoopTimes, RobotThread, _watch
from gpc.bridge.robot import map_features
from gpc.bridge.safety import MIN_INTERVAL, SafetyFilter, SafetyLimits
from gpc.bridge.stop import StopSignal
from gpc.errors import RunError

LIMIT = 1.0


class Spoiled(Arm):
    """Its readings are replaced by `spoil(reading, how many)`."""

    def __init__(self, spoil, **settings):
        super().__init__(**settings)
        self.spoil = spoil

    def get_observation(self):
        return self.spoil(super().get_observation(), self.reads)


def at(value, since=2):
    """One joint reads `value` from a reading on; the first is of when it is connected."""
    return lambda reading, reads: reading | ({"y.pos": value, "state.1": value} if reads >= since else {})


class NoChunk(Line):
    """But the first, which is thrown away before anything moves."""

    def sample(self, request):
        if self.speed == 0:
            raise RunError("no memory")
        self.speed = 0
        return super().sample(request)


@pytest.mark.parametrize("source", [Line, NoChunk])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.nan, "state.1 is nan: not a finite number"),
        (-np.inf, "state.1 is -inf: not a finite number"),
        (
            1000.0,
            "y.pos is at 1000 (limits -1 to 1): the robot must start within safety.position; move it there, or widen it",
        ),
    ],
)
def test_a_first_position_that_is_no_number_or_out_of_range_is_never_sent(value, why, source):
    arm = Spoiled(at(value))
    loop, kept, _, stop_signal = flown(arm, source())
    assert arm.sent == []
    assert (loop.controller.mode, stop_signal.reason) == (STOPPED, "")
    assert kept.first("unread").text == why
    assert kept.first(STOPPED).text == f"no observation: {why}; held for {WATCHDOG.stop_after:g} s"
    assert loop.finished
    assert not arm.is_connected


def test_without_a_chunk_what_was_read_is_not_sent():
    arm = Spoiled(at(0.9))
    loop, _, _, _ = flown(arm, NoChunk())
    assert (loop.controller.mode, arm.sent) == (STOPPED, [])


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda reading: reading | {"state.0": np.nan}, "state.0 is nan: not a finite number"),
        (lambda reading: reading | {"x.pos": np.inf}, "x.pos is inf: not a finite number"),
        (lambda reading: reading | {"front": np.full((4, 4, 3), np.nan)}, "front is nan: not a finite number"),
        (lambda reading: {key: value for key, value in reading.items() if key != "x.pos"}, "lacks the feature 'x.pos'"),
    ],
)
def test_a_reading_with_a_number_that_is_none_is_a_failed_read(spoil, why):
    arm = Spoiled(lambda reading, reads: spoil(reading) if reads in (20, 21) else reading, camera=True)
    _, kept, _, _ = flown(arm, Line(camera=True), seconds=0.8)
    assert [event.kind for event in kept.events] == [OK, "unread", STOPPED]  # for a moment: no hold
    assert why in kept.first("unread").text
    assert [record.frame is None for record in kept.periods].count(True) == 2
    lasting = Spoiled(lambda reading, reads: spoil(reading) if reads > 20 else reading, camera=True)
    _, kept, _, _ = flown(lasting, Line(camera=True))
    assert [event.kind for event in kept.events] == [OK, "unread", HOLD, STOPPED]


def test_in_shadow_a_failed_read_records_no_position():
    arm = Spoiled(lambda reading, reads: reading | {"x.pos": np.nan} if reads in (20, 21) else reading)
    _, kept, _, _ = flown(arm, Line(), seconds=0.8, mode=SHADOW)
    assert "x.pos" in kept.first("unread").text
    unread = [record for record in kept.periods if record.frame is None]
    assert len(unread) == 2
    assert np.isnan([record.sent for record in unread]).all()


class Prompt:
    """In the place of `PlannerThread`, in virtual time: each chunk is there at once."""

    def __init__(self, source):
        self.source, self.replies = source, []

    def request(self, request):
        self.replies.append(reply_to(self.source, request))

    def received(self):
        replies, self.replies = self.replies, []
        return replies


class Timed(Arm):
    """In virtual time; `during(arm)` is called in each reading and may take some."""

    def __init__(self, clock, during):
        super().__init__(during)
        self.clock = clock

    def send_action(self, action):
        self.sent.append((self.clock.time, action["x.pos"]))
        self.position = [action["x.pos"], action["y.pos"]]
        return dict(action)


def timed(during, speed, clock, seconds=4.0, watchdog=None):
    """Fly in virtual time; returns (time, x) of what was received, and the record."""
    arm, source = Timed(clock, during), Line(speed)
    feature_map = map_features(arm, source.observations, 2)
    safety_filter = SafetyFilter(
        SafetyLimits(position=[-9, 9], velocity=LIMIT, actions="absolute").resolve(source.actions, PERIOD),
        feature_map.actions,
    )
    controller = ChunkController(ChunkSpec(-1, 16, 2, 2), RecedingHorizon(8), safety_filter, watchdog or WATCHDOG)
    loop = ControlLoop(arm, feature_map, controller, LIVE, kept := Kept(), clock=clock)
    thread = RobotThread(loop, Prompt(source), LoopTimes(PERIOD, seconds), StopSignal())
    thread.control.set()
    thread.start()
    thread.join(20)
    return np.array(arm.sent), kept


def test_the_limit_of_velocity_holds_by_the_time_between_two_sendings():
    """Readings take 0 to 0.9 periods, the plan moves at 95 % of the limit."""
    rng, clock = np.random.default_rng(0), VirtualClock(100.0)

    def slow(arm):
        clock.time += rng.uniform(0, 0.9) * PERIOD

    received, _ = timed(slow, 0.95 * LIMIT * PERIOD, clock)
    gaps, steps = np.diff(received, axis=0).T
    assert len(received) > 190
    assert gaps.min() < PERIOD  # there is something to keep
    assert (np.abs(steps) / gaps).max() <= LIMIT * (1 + 1e-5)
    assert received[-1, 0] - received[0, 0] == pytest.approx((len(received) - 1) * PERIOD, abs=PERIOD)  # none is lost


def test_a_late_sending_does_not_delay_all_that_follow():
    clock = VirtualClock(100.0)

    def once(arm):
        clock.time += 0.9 * PERIOD if arm.reads == 20 else 0.0

    received, _ = timed(once, 0.1 * LIMIT * PERIOD, clock)
    assert np.diff(received[:, 0]).min() == pytest.approx(MIN_INTERVAL * PERIOD)
    phase = (received[:, 0] - 100.0) / PERIOD % 1
    assert phase[30] > 0.001
    assert np.isclose(np.round(phase[40:], 6) % 1, 0).all()


def test_an_action_that_was_decided_before_a_pause_is_not_sent():
    class Paused(VirtualClock):
        """Suspended in the next wait."""

        def wait(self, until):
            super().wait(until)
            if armed:
                self.time += armed.pop()
                resumed.append(self.time)

    def before_sending(arm):
        if arm.reads == 60:
            armed.append(6.0)

    armed, resumed, clock = [], [], Paused(100.0)
    received, kept = timed(before_sending, 0.1 * LIMIT * PERIOD, clock, 9.0, Watchdog(0.2, 0.4, 0.15, None, 60))
    assert kept.first(HOLD).text == "nothing could be sent for 6.000 s"
    waited = next(i for i, record in enumerate(kept.periods) if record.at > resumed[0] - 6.001)
    assert np.isfinite(kept.periods[waited].command).all()
    assert np.isnan(kept.periods[waited].sent).all()
    assert kept.periods[waited + 1].chunk > kept.periods[waited].chunk
    assert (np.diff(received[:, 1]) > 0).sum() > 140


class Hung(RobotThread):
    """Never ends; each look at it takes as long as `looks` has it, in virtual time."""

    def __init__(self, looks):
        self.looks, self.clock_time = list(looks), VirtualClock(100.0)
        source = Line()
        feature_map = map_features(arm := Arm(), source.observations, 2)
        safety_filter = SafetyFilter(
            SafetyLimits(position=[-9, 9], actions="absolute").resolve(source.actions, 0.005), feature_map.actions
        )
        watchdog = Watchdog(0.2, 0.4, POLL, None, 0.25)
        controller = ChunkController(ChunkSpec(-1, 16, 2, 2), RecedingHorizon(8), safety_filter, watchdog)
        loop = ControlLoop(arm, feature_map, controller, LIVE, Kept(), clock=self.clock_time)
        super().__init__(loop, Prompt(source), LoopTimes(0.005, None, disconnect_within=0.3), StopSignal())

    def is_alive(self):
        return bool(self.looks)

    def join(self, timeout=None):
        self.clock_time.time += self.looks.pop(0)


def test_a_driver_that_hangs_is_given_up_though_a_look_takes_longer_than_an_observation_may():
    thread = Hung([1.3 * POLL] * 1000)
    _watch(thread)
    assert "the robot has not answered for" in thread.stop_signal.reason
    assert thread.clock_time.time - 100 < 0.01 + 0.25 + 0.3 + 10 * POLL


def test_a_pause_of_the_process_is_no_silence_of_the_robot_and_ends_none():
    thread = Hung([POLL] * 10 + [60.0] + [POLL] * 10)
    _watch(thread)
    assert thread.stop_signal.reason == ""
    assert thread.clock_time.time - thread.heartbeat == pytest.approx(21 * POLL)
