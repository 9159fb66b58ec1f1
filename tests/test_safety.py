import numpy as np
import pytest

from gpc.bridge.safety import ROUNDING, SafetyFilter, SafetyLimits, StreamLimits
from gpc.errors import InputError, RunError
from gpc.policy.spec import ActionSpec

SPEC = ActionSpec(8, (2.0, 2.0), (1.0, 1.0), bound=1.0, relative=False)
NAMES = ("elbow", "wrist")


def safety_filter(dt=0.1, spec=SPEC, **limits):
    return SafetyFilter(SafetyLimits(**limits).resolve(spec, dt), NAMES)


def test_nothing_that_is_not_finite_passes_whatever_the_limits():
    free = safety_filter(position=None)
    for value in (np.nan, np.inf, -np.inf):
        assert "elbow, 0 actions from now, is" in free.accept(np.array([value, 0.0]))
        assert "wrist, 1 actions from now, is" in free.violation(np.array([[0.0, 0.0], [0.0, value]]))
    assert free.hold() is None  # nothing was sent, so there is nothing to hold


@pytest.mark.parametrize(
    ("limits", "chunk", "why"),
    [
        ({}, [[3.0, 1.0], [3.1, 1.0]], "the position of elbow, 1 actions from now, is 3.1 (limits -1 to 3)"),
        (
            {"velocity": [9, 2]},
            [[0, 0], [0.5, 0.1], [1, 0.4]],
            "the velocity of wrist, 2 actions from now, is 3 (limit 2)",
        ),
        (
            {"acceleration": 50},
            [[0, 0], [0, 0.4], [0, 0.2]],
            "the acceleration of wrist, 2 actions from now, is 60 (limit 50)",
        ),
        (
            {"jerk": 450},
            [[0, 0], [0.4, 0], [1, 0], [1.1, 0]],
            "the jerk of elbow, 3 actions from now, is 700 (limit 450)",
        ),
    ],
)
def test_a_chunk_that_breaks_a_limit_is_refused_with_step_dimension_value_and_limit(limits, chunk, why):
    assert safety_filter(**limits).violation(np.array(chunk[:-1], float)) is None
    assert safety_filter(**limits).violation(np.array(chunk, float)) == why


def test_a_chunk_is_measured_from_what_was_sent_before():
    limited = safety_filter(velocity=2.0)
    assert limited.accept(np.array([0.0, 0.0])) is None
    assert "velocity of wrist, 0" in limited.violation(np.array([[0.0, 0.5]]))
    assert limited.accept(np.array([0.1, 0.2])) is None
    assert limited.violation(np.array([[0.0, 0.4], [0.0, 0.5]])) is None


def test_a_robot_that_says_where_it_is_does_not_jump_at_the_start():
    limited = safety_filter(velocity=2.0)
    limited.start(np.array([0.0, 0.0]))
    assert "velocity of elbow" in limited.accept(np.array([1.0, 0.0]))
    assert limited.hold() is None  # a reading is no command
    assert limited.accept(np.array([0.1, 0.0])) is None
    np.testing.assert_array_equal(limited.hold(), [0.1, 0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1000.0, -1.01])
def test_a_position_that_is_no_number_or_out_of_range_is_no_start(value):
    limited = safety_filter(velocity=2.0)
    why = limited.start(np.array([0.0, value]))
    assert (
        why
        == f"wrist is at {value:.4g} (limits -1 to 3): the robot must start within safety.position; move it there, or widen it"
    )
    assert limited.history is None
    assert limited.hold() is None
    assert limited.at_rest


def test_what_is_compared_with_a_number_that_is_none_is_refused():
    limits = safety_filter(velocity=2.0, acceleration=50.0).limits
    for value in (np.nan, np.inf):
        assert "velocity of elbow" in limits.violation(np.full((3, 2), value), np.zeros((1, 2)), NAMES)


@pytest.mark.parametrize("hold", [[np.nan, 0.0], [0.0, 1000.0], [0.5, 0.0]])
def test_a_hold_that_would_break_a_limit_is_not_sent(hold, monkeypatch):
    limited = safety_filter(velocity=2.0)
    assert limited.accept(np.zeros(2)) is None
    monkeypatch.setattr(StreamLimits, "brake", lambda *_: np.array(hold))
    with pytest.raises(RunError, match="the hold must not be sent: "):
        limited.hold()
    assert limited.at_rest  # there is nothing more that could be done
    assert limited.hold() is None


def test_what_was_not_sent_after_all_does_not_count():
    limited = safety_filter(velocity=2.0)
    for action in ([0.0, 0.0], [0.1, 0.1], [0.2, 0.2]):
        assert limited.accept(np.array(action)) is None
    limited.undo()
    np.testing.assert_array_equal(limited.hold(), [0.1, 0.1])


def test_without_further_limits_the_hold_is_the_last_target_and_no_move():
    arm = safety_filter(
        spec=ActionSpec(8, (1.0, 1.0), (0.0, 0.0), bound=1.0, relative=True), actions=["relative", "absolute"]
    )
    assert arm.accept(np.array([0.7, -0.4])) is None  # a move, and a gripper
    np.testing.assert_array_equal(arm.hold(), [0.0, -0.4])
    assert arm.accept(np.array([0.7, 1.0])) is None
    np.testing.assert_array_equal(arm.hold(), [0.0, 1.0])


def derivatives(stream, relative, dt):
    """Independent of the module: the stream that the robot follows, differentiated by numpy."""
    followed = np.where(relative, np.cumsum(stream, axis=0), stream)
    return [np.abs(np.diff(followed, n, axis=0)).max(initial=0) / dt**n for n in (1, 2, 3)]


@pytest.mark.parametrize("kind", ["absolute", "relative"])
@pytest.mark.parametrize("bounds", [(2.0, 9.0, 120.0), (2.0, 9.0, None), (2.0, None, 120.0), (1.0, 30.0, 2000.0)])
def test_whatever_is_asked_the_sent_stream_and_its_brake_keep_every_limit(kind, bounds):
    rng, dt, rest = np.random.default_rng(5), 0.05, 400
    limits = dict(zip(("velocity", "acceleration", "jerk"), bounds, strict=True))
    arm = safety_filter(dt, position=[-1, 1], actions=kind, **limits)
    arm.start(np.zeros(2))
    sent, drift = [np.zeros(2)] * 3, np.zeros(2)
    for _ in range(1500):
        drift = 0.9 * drift + 0.003 * rng.standard_normal(2)
        command = drift if kind == "relative" else sent[-1] + (sent[-1] - sent[-2]) + 0.02 * rng.standard_normal(2)
        sent.append(command if arm.accept(command) is None else arm.hold())
    admitted = len({tuple(action) for action in sent})
    sent += [arm.hold() for _ in range(rest)]
    assert admitted > 300
    assert arm.at_rest
    stream = np.array(sent)
    assert np.abs(stream).max() <= 1 + 2 * ROUNDING
    for found, limit in zip(derivatives(stream, kind == "relative", dt), bounds, strict=True):
        assert limit is None or found <= limit * (1 + 2 * ROUNDING)


def test_the_brake_takes_the_time_that_the_jerk_limit_costs():
    """From velocity v: two ramps of the acceleration, v = J t^2 / 4 (both halves), so t = 2 sqrt(v / J)."""
    dt, velocity, jerk = 0.001, 0.5, 20.0
    arm = StreamLimits(*np.array([[-9.0], [9.0], [9.0], [np.inf], [jerk]]), relative=np.array([False]), dt=dt)
    before, steps = np.array([[-2.0], [-1.0], [0.0]]) * velocity * dt, 0
    while not arm.at_rest(before):
        before, steps = np.vstack([before[1:], arm.brake(before)]), steps + 1
    assert steps * dt == pytest.approx(2 * np.sqrt(velocity / jerk), rel=0.02)


def test_an_action_from_which_there_is_no_stop_is_refused():
    arm = safety_filter(0.1, position=[-1, 1], acceleration=2.0)
    arm.start(np.array([0.0, 0.0]))
    x, v, why = 0.0, 0.0, None
    while why is None:  # faster and faster towards the end of the range
        v += 0.02
        x += v
        why = arm.accept(np.array([x, 0.0]))
    assert why == "after this action the robot could not be stopped within its limits"
    assert x < 1  # the action itself was inside
    assert max(float(arm.hold()[0]) for _ in range(50)) <= 1 + ROUNDING


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"position": [1, -1]}, "must be below"),
        ({"position": [0.5, 1], "actions": "relative"}, "leave room for 0"),
        ({"position": "robot"}, "give \\[low, high\\]"),
        ({"position": [1, 2, 3]}, "must be \\[low, high\\]"),
        ({"velocity": [1, 2, 3]}, "safety.velocity=.* a list of 2"),
        ({"velocity": -1}, "safety.velocity"),
        ({"jerk": "fast"}, "safety.jerk=fast"),
        ({"jerk": 1e-322}, "safety.jerk"),  # 0 in one period, so that its brake would be 0 / 0
        ({"actions": "stay"}, "safety.actions=stay"),
        ({"actions": ["absolute"]}, "a list of 2"),
    ],
)
def test_limits_that_make_no_sense_are_bad_input(given, why):
    with pytest.raises(InputError, match=why):
        SafetyLimits(**given).resolve(SPEC, 0.1)


@pytest.mark.parametrize("relative", [None, True])
def test_the_hold_must_be_named_if_the_policy_does_not_send_targets(relative):
    with pytest.raises(
        InputError, match=r"safety\.actions=null needs a policy on this machine whose actions are absolute; name"
    ):
        SafetyLimits().resolve(ActionSpec(8, (1.0,), (0.0,), bound=1.0, relative=relative), 0.1)


def test_a_policy_without_a_range_needs_positions():
    with pytest.raises(InputError, match="needs a policy on this machine whose actions have a range; give"):
        SafetyLimits().resolve(ActionSpec(8, (1.0,), (0.0,), bound=None, relative=False), 0.1)
    with pytest.raises(InputError, match="bound are finite"):
        ActionSpec(8, (1.0,), (0.0,), bound=np.inf, relative=False)
