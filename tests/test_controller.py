"""The pilot in virtual time: what is sent, when it holds, when it stops, whatever the planner does."""

import numpy as np
import pytest

from gpc.bridge.blending import RealTimeChunking, RecedingHorizon
from gpc.bridge.controller import HOLD, OK, STOPPED, ChunkController, ChunkReply, ChunkSpec, Watchdog
from gpc.bridge.safety import SafetyFilter, SafetyLimits
from gpc.errors import InputError
from gpc.policy.spec import ActionSpec

DT, DIM = 0.1, 2
SPEC = ActionSpec(8, (1.0,) * DIM, (0.0,) * DIM, start=-1, bound=1.0, relative=False)
WATCHDOG = Watchdog(deadline=0.35, max_age=0.6, observation_deadline=0.15, frozen_after=None, stop_after=0.5)


def controller(blender=None, watchdog=WATCHDOG, substeps=1, **limits):
    safety_filter = SafetyFilter(SafetyLimits(**limits).resolve(SPEC, DT / substeps), ("x", "y"))
    expected = ChunkSpec(SPEC.start, SPEC.horizon, SPEC.dim, 2, substeps)
    return ChunkController(expected, blender or RecedingHorizon(4), safety_filter, watchdog)


def frame(value=0.0):
    return {"state": np.full(3, float(value))}


def ramp(step, slope=0.01):
    """A chunk whose action for absolute step k is slope * k."""
    return np.repeat(slope * (step + SPEC.start + np.arange(SPEC.horizon))[:, None], DIM, 1)


def run_steps(controller, steps, reply, begin=0, seen=lambda i: True):
    """`reply(i, ask)` gives the replies to hand in at period i; returns what was sent."""
    sent = []
    for i in range(begin, begin + steps):
        now = i * DT
        request = controller.observe(now, frame(i)) if seen(i) else None
        for each in reply(i, request):
            controller.receive(now, each)
        sent.append(controller.act(now))
    return sent


def at_once(i, request):
    return [ChunkReply(request.number, ramp(request.step))] if request else []


def later(delay):
    waiting = {}

    def reply(i, request):
        if request:
            waiting[i + delay] = ChunkReply(request.number, ramp(request.step))
        return [waiting.pop(i)] if i in waiting else []

    return reply


def kinds(controller):
    return [event.kind for event in controller.events]


def test_chunks_are_asked_for_every_so_many_steps_with_the_history_of_the_observations():
    asks, flown = [], controller()
    run_steps(flown, 10, lambda i, request: (asks.append(request) if request else None, at_once(i, request))[1])
    assert [(request.number, request.step) for request in asks] == [(0, 0), (1, 4), (2, 8)]
    assert [request.observation["state"][:, 0].tolist() for request in asks] == [[0, 0], [3, 4], [7, 8]]
    assert flown.mode == OK


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_late_chunk_is_entered_where_the_robot_is(delay):
    sent = run_steps(controller(), 20, later(delay))
    assert sent[:delay] == [None] * delay  # nothing was sent yet, so there is nothing to hold
    np.testing.assert_allclose([action[0] for action in sent[delay:]], 0.01 * np.arange(20 - delay), atol=1e-12)


def test_between_two_steps_the_actions_are_interpolated_and_observed_once():
    flown, sent = controller(substeps=4), []
    for i in range(40):
        now = i * DT / 4
        assert flown.step_begins == (i % 4 == 0)
        for each in at_once(i, flown.observe(now, frame()) if flown.step_begins else None):
            flown.receive(now, each)
        sent.append(flown.act(now)[0])
    np.testing.assert_allclose(sent, 0.0025 * np.arange(40), atol=1e-12)


def test_a_refused_chunk_leaves_the_rest_of_the_old_plan_then_the_robot_holds_then_stops():
    flown = controller()

    def reply(i, request):
        return (
            [ChunkReply(request.number, ramp(request.step) if i == 0 else np.full((8, DIM), np.nan))] if request else []
        )

    sent = run_steps(flown, 20, reply)
    np.testing.assert_allclose([action[0] for action in sent[:7]], 0.01 * np.arange(7), atol=1e-12)
    assert {float(action[0]) for action in sent[7:]} == {float(sent[6][0])}
    held, stopped = (next(e for e in flown.events if e.kind == kind) for kind in (HOLD, STOPPED))
    assert held.at == pytest.approx(0.7)
    assert held.text.startswith("the plan ran out; chunk 4: x, 0 actions from now, is nan")
    assert 0.5 < stopped.at - held.at < 0.5 + 1.5 * DT


def test_an_inference_that_hangs_ends_in_hold_within_the_deadline_and_a_period_then_in_a_stop_for_good():
    watchdog = Watchdog(deadline=0.25, observation_deadline=0.15, stop_after=0.45)
    flown, command = controller(watchdog=watchdog), 0.4
    run_steps(flown, 40, lambda i, request: at_once(i, request) if i < 4 else [])
    held, stopped = (next(e for e in flown.events if e.kind == kind) for kind in (HOLD, STOPPED))
    assert held.text == "no chunk within 0.25 s"  # though the old plan had steps left
    assert command + watchdog.deadline < held.at <= command + watchdog.deadline + DT
    assert held.at + watchdog.stop_after < stopped.at <= held.at + watchdog.stop_after + DT
    run_steps(flown, 5, lambda i, request: [ChunkReply(n, ramp(4)) for n in range(9)], begin=40)
    assert flown.mode == STOPPED


def test_a_hold_ends_with_a_fresh_chunk_which_goes_on_where_the_robot_stopped():
    flown = controller()
    sent = run_steps(flown, 16, lambda i, request: at_once(i, request) if i < 4 or i >= 9 else [])
    assert kinds(flown) == [OK, HOLD, OK]
    steps = np.diff([action[0] for action in sent])
    np.testing.assert_allclose(steps[steps != 0], 0.01, atol=1e-12)  # no jump: what was held was not consumed


def test_late_and_reordered_replies_are_discarded():
    flown = controller(watchdog=Watchdog(deadline=0.15, max_age=0.25, observation_deadline=0.15, stop_after=9))
    asks = []
    run_steps(flown, 4, lambda i, request: (asks.append(request) if request else None, [])[1])
    assert [request.number for request in asks] == [0, 1]  # the first was given up after the deadline
    flown.receive(0.3, ChunkReply(1, ramp(0)))
    flown.receive(0.3, ChunkReply(0, ramp(0) + 0.5))
    assert [event.text for event in flown.events if event.kind == "discarded"] == ["chunk 0 came out of order"]
    assert flown.act(0.3)[0] == 0
    flown.receive(0.3, ChunkReply(7, ramp(0)))
    late = controller(watchdog=Watchdog(deadline=0.3, max_age=0.3, observation_deadline=0.5))
    request = late.observe(0, frame())
    late.observe(0.4, frame())
    late.receive(0.4, ChunkReply(request.number, ramp(0)))
    assert late.act(0.4) is None
    assert late.events[0].text == "chunk 0: its observation is 0.400 s old (max_age 0.3 s)"


@pytest.mark.parametrize(
    "chunk",
    [
        np.zeros((7, 2)),
        np.zeros((8, 3)),
        np.zeros(8),
        np.zeros((8, 2), object),
        np.zeros((8, 2), "U1"),
        np.zeros((8, 2), complex),
    ],
)
def test_a_chunk_of_another_shape_is_refused(chunk):
    flown = controller()
    run_steps(flown, 2, lambda i, request: [ChunkReply(request.number, chunk)] if request else [])
    assert kinds(flown)[0] == "refused"
    assert flown.mode == HOLD


def test_no_observation_means_hold_then_stop_and_no_jump_where_they_come_back():
    flown = controller()
    run_steps(flown, 6, at_once, seen=lambda i: i < 3)
    assert (flown.mode, kinds(flown)) == (HOLD, [OK, HOLD])
    assert "no observation for" in flown.reason
    run_steps(flown, 3, at_once, begin=6)
    assert flown.mode == OK
    run_steps(flown, 9, at_once, begin=9, seen=lambda i: False)
    assert flown.mode == STOPPED


def test_after_a_gap_between_observations_only_a_chunk_for_a_later_one_is_flown():
    flown = controller()
    run_steps(flown, 4, at_once)
    pending = flown.observe(0.4, frame())
    assert flown.act(0.4) is not None
    fresh = flown.observe(6.5, frame())  # the process was paused
    assert (flown.mode, flown.reason) == (HOLD, "no observation for 6.100 s")
    before = flown.step
    flown.receive(6.5, ChunkReply(pending.number, ramp(4)))
    assert flown.act(6.5)[0] == pytest.approx(0.04)  # the last target again
    assert (flown.mode, flown.step) == (HOLD, before)
    flown.receive(6.5, ChunkReply(fresh.number, ramp(fresh.step)))
    assert flown.act(6.51)[0] == pytest.approx(0.05)
    assert kinds(flown) == [OK, HOLD, "discarded", OK]


def test_a_plan_is_not_flown_long_after_the_time_that_it_is_for():
    """Three stalls, each shorter than any other deadline."""
    flown = controller(RecedingHorizon(7), Watchdog(deadline=9, max_age=0.25, observation_deadline=0.25))
    now, sent = 0.0, []
    for stall in (0.0, 0.1, 0.1, 0.1):
        for _ in range(1 if stall else 2):
            now += DT + stall
            for each in at_once(0, flown.observe(now, frame())):
                flown.receive(now, each)
            sent.append(flown.act(now)[0])
    assert (flown.mode, flown.reason) == (HOLD, "the plan is 0.300 s behind its time (max_age 0.25 s)")
    np.testing.assert_allclose(sent, [0, 0.01, 0.02, 0.03, 0.03], atol=1e-12)


def test_after_a_pause_the_robot_is_at_rest_and_nothing_is_braked():
    flown = controller(acceleration=0.5)  # 0.005 a step more in each step
    chunk = np.repeat(0.0025 * np.arange(-1, 7)[:, None] ** 2, DIM, 1)
    flown.safety_filter.start(np.zeros(DIM))
    flown.receive(0, ChunkReply(flown.observe(0, frame()).number, chunk))
    for i in range(4):
        flown.observe(i * DT, frame())
        last = flown.act(i * DT)
    flown.observe(9.0, frame())
    np.testing.assert_array_equal(flown.act(9.0), last)
    assert flown.safety_filter.at_rest


@pytest.mark.parametrize("mode", [HOLD, STOPPED])
def test_a_hold_that_would_break_a_limit_is_a_stop_without_an_action(mode, monkeypatch):
    flown = controller()
    run_steps(flown, 3, at_once)
    monkeypatch.setattr(type(flown.safety_filter.limits), "brake", lambda *_: np.full(DIM, np.nan))
    if mode == STOPPED:
        flown.stop(0.3, "SIGINT")
    assert run_steps(flown, 4, lambda i, request: [], begin=9) == [None] * 4
    assert flown.mode == STOPPED
    assert flown.safety_filter.at_rest
    assert "the hold must not be sent: x, 0 actions from now, is nan" in [event.text for event in flown.events]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_camera_that_shows_the_same_picture_bit_for_bit_is_dead(frozen):
    flown = controller(watchdog=Watchdog(frozen_after=0.4, stop_after=0.3))
    picture = np.zeros((4, 4, 3), np.uint8)
    for i in range(20):
        picture = picture if frozen else picture + np.uint8(1)
        for each in at_once(i, flown.observe(i * DT, {"front": picture, "state": np.zeros(3)})):
            flown.receive(i * DT, each)
        flown.act(i * DT)
    assert kinds(flown) == ([OK, HOLD, STOPPED] if frozen else [OK])
    assert not frozen or "camera front has shown the same picture for 0.500 s" in flown.events[1].text


def test_a_stop_is_for_good_and_keeps_its_first_reason():
    flown = controller()
    sent = run_steps(flown, 3, at_once)
    flown.stop(0.3, "SIGINT")
    flown.stop(0.4, "SIGTERM")
    assert flown.reason == "SIGINT"
    for action in run_steps(flown, 5, at_once, begin=3):
        np.testing.assert_array_equal(action, sent[-1])


def test_real_time_chunking_hands_over_what_is_planned_and_fixes_the_expected_delay():
    asks, flown, reply = [], controller(RealTimeChunking(4)), later(2)
    run_steps(flown, 12, lambda i, request: (asks.append(request) if request else None, reply(i, request))[1])
    first, second = asks[:2]
    assert first.known is None
    assert second.step == 4
    left, past = 3, 1  # steps 4, 5, 6 are planned; the chunk begins one step before
    np.testing.assert_allclose(second.known.actions[0, : past + left], ramp(4)[: past + left], atol=1e-12)
    assert second.known.mask[past + left :].max() == 0
    assert second.known.mask[0] == 1  # what was executed
    third = next(request for request in asks if request.number == 2)
    assert third.known.mask[1:3].tolist() == [1, 1]  # two steps were consumed the last time


def test_a_stitch_that_outruns_the_chunk_is_bad_input():
    with pytest.raises(InputError, match="requested every 8 steps, the policy predicts 7 from now"):
        controller(RecedingHorizon(8))


@pytest.mark.parametrize("value", [0, -1, np.inf, np.nan])
def test_patience_is_positive(value):
    with pytest.raises(InputError, match=r"watchdog\.deadline"):
        Watchdog(deadline=value)
