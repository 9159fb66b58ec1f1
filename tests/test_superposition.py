"""Or and And against closed forms on Gaussians: shares of modes, equal densities, the log-density along a path."""

from dataclasses import replace

import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian, both, either, state
from torch.distributions import Normal

from gpc.composition.composed import compose
from gpc.composition.superposition import DensityTracker, Or
from gpc.errors import InputError
from gpc.inference.actor import ChunkActor
from gpc.inference.chunk import sample_chunk
from gpc.inference.settings import Sampling

SHORT = replace(ACTIONS, horizon=2)
APART = [FixedPolicy(Gaussian(-2.0, 0.3), SHORT), FixedPolicy(Gaussian(2.0, 0.3), SHORT)]
CHUNKS = 4000


def sample(policy, steps, chunks=CHUNKS):
    shape = (steps + 1, chunks, policy.actions.horizon, 2)
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sample_chunk(policy, state(chunks), noise, Sampling("ancestral", steps, 40.0, 0.01))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_or_gives_each_mode_its_share_and_its_spread(share):
    chunks = sample(either(APART, [share, 1 - share]), 200)
    means = chunks.flatten(1).mean(1)
    assert not (means.abs() < 1).any()  # never between the modes, where the convex sum puts them
    assert (means < 0).double().mean() == pytest.approx(share, abs=0.03)
    assert chunks[means < 0].std() == pytest.approx(0.3, abs=0.01)
    mixed = sample(compose(APART, [share, 1 - share]), 200)
    assert mixed.mean() == pytest.approx(2 - 4 * share, abs=0.02)


def test_the_share_converges_to_the_weight():
    errors = [
        abs((sample(either(APART, [0.8, 0.2]), steps).flatten(1).mean(1) < 0).double().mean() - 0.8)
        for steps in (16, 400)
    ]
    assert errors[0] > 0.05
    assert errors[1] < 0.02


def test_and_finds_where_all_densities_are_equal():
    chunks = sample(both(APART), 50)
    left, right = (Normal(m, 0.3).log_prob(chunks).flatten(1).sum(1) for m in (-2.0, 2.0))
    assert (left - right).abs().median() < 1.5
    alone = sample(compose(APART[:1]), 50)  # where one policy goes by itself they are far apart
    assert (Normal(-2.0, 0.3).log_prob(alone) - Normal(2.0, 0.3).log_prob(alone)).flatten(1).sum(1).median() > 300


def test_and_of_one_density_thrice_is_that_density():
    torch.testing.assert_close(sample(both(APART[:1] * 3), 50), sample(APART[0], 50), atol=1e-9, rtol=0)


def test_the_followed_log_density_is_that_of_the_path():
    """Ito's estimate against the closed form N(x; m, s^2 + sigma^2), up to a constant; the error falls with the steps."""
    errors = []
    for steps in (100, 1600):
        members = [Gaussian(-1.0, 0.5), Gaussian(1.0, 0.9)]
        follower = DensityTracker(Or(torch.tensor([0.5, 0.5])))
        sigmas = torch.logspace(1.5, -1, steps + 1, dtype=torch.float64)
        generator = torch.Generator().manual_seed(1)
        x = sigmas[0] * torch.randn(500, 2, 2, dtype=torch.float64, generator=generator)
        start = None
        for above, below in zip(sigmas[:-1], sigmas[1:], strict=True):
            out = follower(x, above, [m(x, above) for m in members], torch.ones(2, 2, 2, dtype=torch.float64))
            now = torch.stack([Normal(m.mean, (m.std**2 + above**2).sqrt()).log_prob(x) for m in members])
            exact = now.flatten(2).sum(-1)
            start = exact if start is None else start
            fall = above**2 - below**2
            noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
            x = x + fall * (out - x) / above**2 + fall.sqrt() * noise
        gained = exact - start
        errors.append(((follower.log_density - gained)[0] - (follower.log_density - gained)[1]).abs().mean())
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1


@pytest.mark.parametrize("operator", [either, both])
def test_with_one_member_an_operator_is_that_member_exactly(operator):
    alone = sample(compose(APART[:1]), 20, 8)
    assert torch.equal(sample(operator(APART[:1]), 20, 8), alone)
    one_hot = operator(APART).with_weights(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert torch.equal(sample(one_hot, 20, 8), alone)


def test_or_at_temperature_zero_is_the_convex_sum():
    mixed = sample(either(APART, [0.3, 0.7], temperature=0.0), 20, 8)
    torch.testing.assert_close(mixed, sample(compose(APART, [0.3, 0.7]), 20, 8), atol=1e-12, rtol=0)


@pytest.mark.parametrize("operator", [either, both])
def test_a_policy_without_weight_is_not_asked(operator):
    two = operator(APART, [0.3, 0.7])
    three = operator([*APART, FixedPolicy(Gaussian(9.0, 0.3), SHORT)], [0.3, 0.7, 0.0])
    torch.testing.assert_close(sample(three, 20, 8), sample(two, 20, 8), atol=1e-12, rtol=0)


def test_and_holds_the_densities_in_the_weights_proportion():
    chunks = sample(both(APART, [0.9, 0.1]), 400)
    left, right = (Normal(m, 0.3).log_prob(chunks).flatten(1).sum(1) for m in (-2.0, 2.0))
    assert (left - right).median() == pytest.approx(torch.tensor(9.0).log().item(), abs=0.5)


def test_rows_of_a_batch_do_not_see_each_other():
    weights = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
    for operator in (either, both):
        together = sample(operator(APART, weights), 20, 2)
        noise = torch.randn((21, 2, 2, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for row in range(2):
            policy = operator(APART, weights[row])
            own = sample_chunk(policy, state(1), noise[:, row : row + 1], Sampling("ancestral", 20, 40.0, 0.01))
            torch.testing.assert_close(own, together[row : row + 1], atol=1e-9, rtol=0)


def test_steps_that_one_member_lacks_are_the_others():
    longer = FixedPolicy(Gaussian(2.0, 0.3), replace(SHORT, horizon=4))
    for operator in (either, both):
        chunks = sample(operator([APART[0], longer]), 50)
        assert chunks[:, 2:].mean() == pytest.approx(2.0, abs=0.02)


def test_a_sampler_without_noise_is_refused():
    with pytest.raises(InputError, match="follow densities along noisy steps; take sampler=ancestral"):
        ChunkActor(either(APART), Sampling("dpmpp_2m", 8), 1)
    with pytest.raises(InputError, match="composer=and"):
        sample_chunk(both(APART), state(1), torch.zeros(1, 1, 2, 2, dtype=torch.float64), Sampling("euler", 8))


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_a_temperature_must_make_sense(temperature):
    with pytest.raises(InputError, match="temperature="):
        either(APART, temperature=temperature)


def test_signed_weights_are_refused():
    with pytest.raises(InputError, match="convex weights"):
        both(APART, [1.5, -0.5])
