import numpy as np
import pytest

from gpc.bridge.blending import PlacedChunk, RealTimeChunking, RecedingHorizon, TemporalEnsembling
from gpc.errors import InputError


def line(first, value, horizon=4):
    return PlacedChunk(first, np.full((horizon, 1), float(value)))


def test_a_plan_knows_which_step_its_first_action_belongs_to():
    plan = PlacedChunk(10, np.arange(3.0)[:, None])
    assert [plan.at(step) for step in (9, 13)] == [None, None]
    assert [float(plan.at(step)[0]) for step in (10, 11, 12)] == [0, 1, 2]


def test_receding_horizon_follows_the_newest_chunk():
    stitch = RecedingHorizon(2)
    assert stitch.blend([line(0, 1), line(2, 5)], 3) == 5
    assert stitch.blend([], 3) is None
    assert stitch.blend([line(0, 1)], 4) is None


def test_ensembling_is_the_mean_of_zhao_et_al_with_the_most_weight_on_the_oldest():
    stitch = TemporalEnsembling(request_every=1, decay=0.5, max_chunks=8)
    plans = [line(0, 1), line(1, 2), line(2, 4)]
    weights = np.exp([0, -0.5, -1.0])
    assert stitch.blend(plans, 3) == pytest.approx((weights @ [1, 2, 4]) / weights.sum())
    assert stitch.blend(plans, 5) == pytest.approx(4)
    weights = weights[:2]  # the oldest chunk that still says something counts as the first
    assert stitch.blend(plans, 4) == pytest.approx((weights @ [2, 4]) / weights.sum())
    assert stitch.blend(plans, 6) is None


def test_real_time_chunking_has_the_weights_of_black_et_al_equation_5():
    horizon, executed, delay = 16, 6, 3
    left = horizon - executed
    wanted = []
    for i in range(horizon):
        c = (horizon - executed - i) / (horizon - executed - delay + 1)
        wanted.append(1.0 if i < delay else c * (np.e**c - 1) / (np.e - 1) if i < left else 0.0)
    np.testing.assert_allclose(RealTimeChunking(executed).inpaint_weights(horizon, left, delay), wanted, atol=1e-15)


@pytest.mark.parametrize(("left", "delay"), [(0, 0), (0, 5), (3, 5), (16, 0), (16, 16), (1, 1)])
def test_real_time_chunking_never_pulls_where_nothing_is_planned(left, delay):
    inpaint_weights = RealTimeChunking(4).inpaint_weights(16, left, delay)
    assert ((inpaint_weights >= 0) & (inpaint_weights <= 1)).all()
    assert (inpaint_weights[left:] == 0).all()
    assert (inpaint_weights[: min(left, delay)] == 1).all()
    assert (np.diff(inpaint_weights) <= 0).all()


@pytest.mark.parametrize(
    "build",
    [
        lambda: RecedingHorizon(0),
        lambda: RealTimeChunking(-1),
        lambda: TemporalEnsembling(0, 0.1, 8),
        lambda: TemporalEnsembling(1, float("nan"), 8),
    ],
)
def test_settings_that_make_no_sense_are_bad_input(build):
    with pytest.raises(InputError, match=r"stitch\.|n_action_steps"):
        build()
