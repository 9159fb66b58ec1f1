"""The pilot in virtual time: what is sent, when it holds, when it stops, whatever the planner does."""

import numpy as np
import pytest

from gpc.bridge.blending import RealTimeChunking, RecedingHorizon
from gpc.bridge.controller import HOLD, OK, STOPPED, Expected, Patience, Pilot, Reply
from gpc.bridge.safety import Gate, limits_from
from gpc.errors import InputError
from gpc.policy.spec import ActionSpec

DT, DIM = 0.1, 2
SPEC = ActionSpec(8, (1.0,) * DIM, (0.0,) * DIM, start=-1, bound=1.0, relative=False)
PATIENCE = Patience(deadline=0.35, max_age=0.6, observation_deadline=0.15, frozen_after=None, stop_after=0.5)


def pilot(stitch=None, patience=PATIENCE, substeps=1, **limits):
    gate = Gate(limits_from(SPEC, DT / substeps, **limits), ("x", "y"))
    expected = Expected(SPEC.start, SPEC.horizon, SPEC.dim, 2, substeps)
    return Pilot(expected, stitch or RecedingHorizon(4), gate, patience)


def frame(value=0.0):
    return {"state": np.full(3, float(value))}


def ramp(step, slope=0.01):
    """A chunk whose action for absolute step k is slope * k."""
    return np.repeat(slope * (step + SPEC.start + np.arange(SPEC.horizon))[:, None], DIM, 1)


def fly(pilot, steps, reply, begin=0, seen=lambda i: True):
    """`reply(i, ask)` gives the replies to hand in at period i; returns what was sent."""
    sent = []
    for i in range(begin, begin + steps):
        now = i * DT
        ask = pilot.observe(now, frame(i)) if seen(i) else None
        for each in reply(i, ask):
            pilot.receive(now, each)
        sent.append(pilot.act(now))
    return sent


def at_once(i, ask):
    return [Reply(ask.number, ramp(ask.step))] if ask else []


def later(delay):
    waiting = {}

    def reply(i, ask):
        if ask:
            waiting[i + delay] = Reply(ask.number, ramp(ask.step))
        return [waiting.pop(i)] if i in waiting else []

    return reply


def kinds(pilot):
    return [event.kind for event in pilot.events]


def test_chunks_are_asked_for_every_so_many_steps_with_the_history_of_the_observations():
    asks, flown = [], pilot()
    fly(flown, 10, lambda i, ask: (asks.append(ask) if ask else None, at_once(i, ask))[1])
    assert [(ask.number, ask.step) for ask in asks] == [(0, 0), (1, 4), (2, 8)]
    assert [ask.observation["state"][:, 0].tolist() for ask in asks] == [[0, 0], [3, 4], [7, 8]]
    assert flown.mode == OK


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_a_late_chunk_is_entered_where_the_robot_is(delay):
    sent = fly(pilot(), 20, later(delay))
    assert sent[:delay] == [None] * delay  # nothing was sent yet, so there is nothing to hold
    np.testing.assert_allclose([action[0] for action in sent[delay:]], 0.01 * np.arange(20 - delay), atol=1e-12)


def test_between_two_steps_the_actions_are_interpolated_and_observed_once():
    flown, sent = pilot(substeps=4), []
    for i in range(40):
        now = i * DT / 4
        assert flown.begins_step == (i % 4 == 0)
        for each in at_once(i, flown.observe(now, frame()) if flown.begins_step else None):
            flown.receive(now, each)
        sent.append(flown.act(now)[0])
    np.testing.assert_allclose(sent, 0.0025 * np.arange(40), atol=1e-12)


def test_a_refused_chunk_leaves_the_rest_of_the_old_plan_then_the_robot_holds_then_stops():
    flown = pilot()

    def reply(i, ask):
        return [Reply(ask.number, ramp(ask.step) if i == 0 else np.full((8, DIM), np.nan))] if ask else []

    sent = fly(flown, 20, reply)
    np.testing.assert_allclose([action[0] for action in sent[:7]], 0.01 * np.arange(7), atol=1e-12)
    assert {float(action[0]) for action in sent[7:]} == {float(sent[6][0])}
    held, stopped = (next(e for e in flown.events if e.kind == kind) for kind in (HOLD, STOPPED))
    assert held.at == pytest.approx(0.7)
    assert held.text.startswith("the plan ran out; chunk 4: x, 0 actions from now, is nan")
    assert 0.5 < stopped.at - held.at < 0.5 + 1.5 * DT


def test_an_inference_that_hangs_ends_in_hold_within_the_deadline_and_a_period_then_in_a_stop_for_good():
    patience = Patience(deadline=0.25, observation_deadline=0.15, stop_after=0.45)
    flown, asked = pilot(patience=patience), 0.4
    fly(flown, 40, lambda i, ask: at_once(i, ask) if i < 4 else [])
    held, stopped = (next(e for e in flown.events if e.kind == kind) for kind in (HOLD, STOPPED))
    assert held.text == "no chunk within 0.25 s"  # though the old plan had steps left
    assert asked + patience.deadline < held.at <= asked + patience.deadline + DT
    assert held.at + patience.stop_after < stopped.at <= held.at + patience.stop_after + DT
    fly(flown, 5, lambda i, ask: [Reply(n, ramp(4)) for n in range(9)], begin=40)
    assert flown.mode == STOPPED


def test_a_hold_ends_with_a_fresh_chunk_which_goes_on_where_the_robot_stopped():
    flown = pilot()
    sent = fly(flown, 16, lambda i, ask: at_once(i, ask) if i < 4 or i >= 9 else [])
    assert kinds(flown) == [OK, HOLD, OK]
    steps = np.diff([action[0] for action in sent])
    np.testing.assert_allclose(steps[steps != 0], 0.01, atol=1e-12)  # no jump: what was held was not consumed


def test_late_and_reordered_replies_are_discarded():
    flown = pilot(patience=Patience(deadline=0.15, max_age=0.25, observation_deadline=0.15, stop_after=9))
    asks = []
    fly(flown, 4, lambda i, ask: (asks.append(ask) if ask else None, [])[1])
    assert [ask.number for ask in asks] == [0, 1]  # the first was given up after the deadline
    flown.receive(0.3, Reply(1, ramp(0)))
    flown.receive(0.3, Reply(0, ramp(0) + 0.5))
    assert [event.text for event in flown.events if event.kind == "discarded"] == ["chunk 0 came out of order"]
    assert flown.act(0.3)[0] == 0
    flown.receive(0.3, Reply(7, ramp(0)))
    late = pilot(patience=Patience(deadline=0.3, max_age=0.3, observation_deadline=0.5))
    ask = late.observe(0, frame())
    late.observe(0.4, frame())
    late.receive(0.4, Reply(ask.number, ramp(0)))
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
    flown = pilot()
    fly(flown, 2, lambda i, ask: [Reply(ask.number, chunk)] if ask else [])
    assert kinds(flown)[0] == "refused"
    assert flown.mode == HOLD


def test_no_observation_means_hold_then_stop_and_no_jump_where_they_come_back():
    flown = pilot()
    fly(flown, 6, at_once, seen=lambda i: i < 3)
    assert (flown.mode, kinds(flown)) == (HOLD, [OK, HOLD])
    assert "no observation for" in flown.why
    fly(flown, 3, at_once, begin=6)
    assert flown.mode == OK
    fly(flown, 9, at_once, begin=9, seen=lambda i: False)
    assert flown.mode == STOPPED


def test_after_a_gap_between_observations_only_a_chunk_for_a_later_one_is_flown():
    flown = pilot()
    fly(flown, 4, at_once)
    pending = flown.observe(0.4, frame())
    assert flown.act(0.4) is not None
    fresh = flown.observe(6.5, frame())  # the process was paused
    assert (flown.mode, flown.why) == (HOLD, "no observation for 6.100 s")
    before = flown.step
    flown.receive(6.5, Reply(pending.number, ramp(4)))
    assert flown.act(6.5)[0] == pytest.approx(0.04)  # the last target again
    assert (flown.mode, flown.step) == (HOLD, before)
    flown.receive(6.5, Reply(fresh.number, ramp(fresh.step)))
    assert flown.act(6.51)[0] == pytest.approx(0.05)
    assert kinds(flown) == [OK, HOLD, "discarded", OK]


def test_a_plan_is_not_flown_long_after_the_time_that_it_is_for():
    """Three stalls, each shorter than any other deadline."""
    flown = pilot(RecedingHorizon(7), Patience(deadline=9, max_age=0.25, observation_deadline=0.25))
    now, sent = 0.0, []
    for stall in (0.0, 0.1, 0.1, 0.1):
        for _ in range(1 if stall else 2):
            now += DT + stall
            for each in at_once(0, flown.observe(now, frame())):
                flown.receive(now, each)
            sent.append(flown.act(now)[0])
    assert (flown.mode, flown.why) == (HOLD, "the plan is 0.300 s behind its time (max_age 0.25 s)")
    np.testing.assert_allclose(sent, [0, 0.01, 0.02, 0.03, 0.03], atol=1e-12)


def test_after_a_pause_the_robot_is_at_rest_and_nothing_is_braked():
    flown = pilot(acceleration=0.5)  # 0.005 a step more in each step
    chunk = np.repeat(0.0025 * np.arange(-1, 7)[:, None] ** 2, DIM, 1)
    flown.gate.start(np.zeros(DIM))
    flown.receive(0, Reply(flown.observe(0, frame()).number, chunk))
    for i in range(4):
        flown.observe(i * DT, frame())
        last = flown.act(i * DT)
    flown.observe(9.0, frame())
    np.testing.assert_array_equal(flown.act(9.0), last)
    assert flown.gate.at_rest


@pytest.mark.parametrize("mode", [HOLD, STOPPED])
def test_a_hold_that_would_break_a_limit_is_a_stop_without_an_action(mode, monkeypatch):
    flown = pilot()
    fly(flown, 3, at_once)
    monkeypatch.setattr(type(flown.gate.limits), "brake", lambda *_: np.full(DIM, np.nan))
    if mode == STOPPED:
        flown.stop(0.3, "SIGINT")
    assert fly(flown, 4, lambda i, ask: [], begin=9) == [None] * 4
    assert flown.mode == STOPPED
    assert flown.gate.at_rest
    assert "the hold must not be sent: x, 0 actions from now, is nan" in [event.text for event in flown.events]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_camera_that_shows_the_same_picture_bit_for_bit_is_dead(frozen):
    flown = pilot(patience=Patience(frozen_after=0.4, stop_after=0.3))
    picture = np.zeros((4, 4, 3), np.uint8)
    for i in range(20):
        picture = picture if frozen else picture + np.uint8(1)
        for each in at_once(i, flown.observe(i * DT, {"front": picture, "state": np.zeros(3)})):
            flown.receive(i * DT, each)
        flown.act(i * DT)
    assert kinds(flown) == ([OK, HOLD, STOPPED] if frozen else [OK])
    assert not frozen or "camera front has shown the same picture for 0.500 s" in flown.events[1].text


def test_a_stop_is_for_good_and_keeps_its_first_reason():
    flown = pilot()
    sent = fly(flown, 3, at_once)
    flown.stop(0.3, "SIGINT")
    flown.stop(0.4, "SIGTERM")
    assert flown.why == "SIGINT"
    for action in fly(flown, 5, at_once, begin=3):
        np.testing.assert_array_equal(action, sent[-1])


def test_real_time_chunking_hands_over_what_is_planned_and_fixes_the_expected_delay():
    asks, flown, reply = [], pilot(RealTimeChunking(4)), later(2)
    fly(flown, 12, lambda i, ask: (asks.append(ask) if ask else None, reply(i, ask))[1])
    first, second = asks[:2]
    assert first.known is None
    assert second.step == 4
    left, past = 3, 1  # steps 4, 5, 6 are planned; the chunk begins one step before
    np.testing.assert_allclose(second.known.actions[0, : past + left], ramp(4)[: past + left], atol=1e-12)
    assert second.known.weight[past + left :].max() == 0
    assert second.known.weight[0] == 1  # what was executed
    third = next(ask for ask in asks if ask.number == 2)
    assert third.known.weight[1:3].tolist() == [1, 1]  # two steps were consumed the last time


def test_a_stitch_that_outruns_the_chunk_is_bad_input():
    with pytest.raises(InputError, match="asked for every 8 steps, the policy plans 7 from now"):
        pilot(RecedingHorizon(8))


@pytest.mark.parametrize("value", [0, -1, np.inf, np.nan])
def test_patience_is_positive(value):
    with pytest.raises(InputError, match=r"watchdog\.deadline"):
        Patience(deadline=value)
