import math

import pytest
import torch
from diffusers import DDPMScheduler
from models import flow_sigmas

from gpc.errors import InputError
from gpc.score.noise import (
    Karras,
    LinearFlow,
    NoiseLevels,
    VariancePreserving,
    karras_sigmas,
    merge_levels,
    snap_sigmas,
    trained_sigmas,
)

COSINE = VariancePreserving.squaredcos(100)


def test_the_cosine_schedule_is_that_of_diffusers():
    theirs = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    ours = COSINE.scale(COSINE.sigmas) ** 2
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)  # theirs is a float32 table


def test_variance_preserving_labels_are_the_step_indices():
    assert COSINE.label(COSINE.sigmas).tolist() == list(range(100))
    alpha = COSINE.scale(COSINE.sigmas)
    torch.testing.assert_close(alpha**2 + (alpha * COSINE.sigmas) ** 2, torch.ones(100, dtype=torch.float64))


@pytest.mark.parametrize("reverse", [False, True])
def test_a_flow_is_a_straight_line_in_its_own_time(reverse):
    flow, t = LinearFlow(reverse=reverse), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = t / (1 - t)
    torch.testing.assert_close(flow.label(sigma), 1 - t if reverse else t)
    torch.testing.assert_close(flow.scale(sigma), 1 - t)
    assert flow.levels.sigma_max == math.inf


def test_karras_preconditioning_gives_the_network_unit_variance():
    sigma = torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64)
    torch.testing.assert_close(Karras(0.5).scale(sigma) ** 2 * (sigma**2 + 0.25), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(Karras(0.5).label(sigma), sigma.log() / 4)


def test_the_karras_grid_has_its_ends_and_is_even_in_the_seventh_root():
    grid = karras_sigmas(9, 0.01, 40.0)
    assert grid.shape == (10,)
    assert grid[-1] == 0
    assert grid[0] == pytest.approx(40.0)
    assert grid[-2] == pytest.approx(0.01)
    roots = grid[:-1] ** (1 / 7)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(8))


def test_the_flow_grid_is_even_in_t():
    grid = flow_sigmas(4)
    torch.testing.assert_close(grid / (1 + grid), torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))


def test_a_discrete_model_is_asked_at_its_trained_levels_only():
    levels = COSINE.levels
    grid = snap_sigmas(karras_sigmas(50, levels.sigma_min, levels.sigma_max), levels)
    assert set(grid[:-1].tolist()) <= set(levels.trained)
    assert bool((grid.diff() < 0).all())
    assert grid[0] == levels.sigma_max
    torch.testing.assert_close(trained_sigmas(levels)[:-1].flip(0), COSINE.sigmas)
    assert len(trained_sigmas(levels, 10)) == 11
    assert trained_sigmas(levels, 10)[0] == levels.sigma_max


def test_a_continuous_grid_is_left_alone():
    grid = karras_sigmas(5, 0.01, 40.0)
    assert torch.equal(snap_sigmas(grid, NoiseLevels(0.001, 80)), grid)


def test_shared_levels_are_the_intersection_on_the_discrete_models_levels():
    shared = merge_levels([NoiseLevels(0.5, 10.0), COSINE.levels, NoiseLevels(0.1, 20.0)])
    assert (shared.sigma_min, shared.sigma_max) == (0.5, 10.0)
    assert shared.trained == tuple(s for s in COSINE.sigmas.tolist() if 0.5 <= s <= 10)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([COSINE.levels, VariancePreserving.squaredcos(50).levels], "trained on different noise levels"),
        ([NoiseLevels(0.1, 1), NoiseLevels(2, 3)], "share no range"),
    ],
)
def test_levels_that_do_not_fit_are_refused(levels, message):
    with pytest.raises(InputError, match=message):
        merge_levels(levels)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: VariancePreserving((0.1, 1.5)),
        lambda: VariancePreserving((0.1,)),
        lambda: NoiseLevels(2.0, 1.0),
        lambda: karras_sigmas(0, 0.1, 1.0),
        lambda: trained_sigmas(NoiseLevels(0.1, 1.0)),
        lambda: trained_sigmas(COSINE.levels, 101),
    ],
)
def test_schedules_and_grids_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError):
        wrong()


def test_the_betas_are_bit_for_bit_those_of_diffusers_in_float32():
    theirs = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2").betas
    betas = torch.tensor(COSINE.betas, dtype=torch.float64)
    assert torch.equal(betas.float(), theirs)
    assert (COSINE.scale(COSINE.sigmas) ** 2 - torch.cumprod(1 - betas, 0)).abs().max() < 1e-12


def test_snapping_and_labels_take_the_nearest_level_in_log_sigma():
    low, high = COSINE.sigmas[97], COSINE.sigmas[98]
    between = low**0.45 * high**0.55  # nearer to `high` in log sigma, to `low` in sigma
    assert between < (low + high) / 2
    assert COSINE.label(between) == 98
    assert COSINE.levels.snap(float(between)) == COSINE.levels.trained[98]


def test_two_discrete_grids_are_shared_only_if_their_levels_are_near():
    assert merge_levels([COSINE.levels, COSINE.levels]) == COSINE.levels
    near = merge_levels([COSINE.levels, COSINE.levels.scaled(1.04)])
    assert near.trained == COSINE.levels.trained[1:]  # the first's levels, but for the one below the other's range
    with pytest.raises(InputError, match=r"different noise levels .*none of the second within 5%"):
        merge_levels([COSINE.levels, COSINE.levels.scaled(1.2)])


def test_a_shared_range_without_a_trained_level_is_refused():
    with pytest.raises(InputError):
        merge_levels([NoiseLevels(1, 8, (1.0, 2.0, 4.0, 8.0)), NoiseLevels(2.5, 3.5)])


@pytest.mark.parametrize("trained", [(2.0, 0.1), (0.1, 0.1), (0.0, 2.0), (0.1, math.nan), ()])
def test_trained_levels_ascend(trained):
    with pytest.raises(InputError, match="ascending numbers above 0"):
        NoiseLevels(0.1, 2.0, trained)


@pytest.mark.parametrize("steps", [1, 10**9, -5, True, 2.5, "100"])
def test_a_schedule_has_a_bounded_number_of_steps(steps):
    """A table of 10^9 steps is 8 GB."""
    with pytest.raises(InputError, match="2 to 10000 steps"):
        VariancePreserving.squaredcos(steps)
