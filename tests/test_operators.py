"""Langevin corrections, averages, best of several and cheaper sampling against closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian, guide, state

from gpc.composition.average import AveragedChunks
from gpc.composition.composed import compose
from gpc.composition.steering import steer
from gpc.errors import InputError
from gpc.inference.actor import ChunkActor
from gpc.inference.best_of import BestOf, medoid
from gpc.inference.chunk import sample_chunk
from gpc.inference.methods import Langevin, Teleport
from gpc.inference.settings import Sampling
from gpc.schema import convert
from gpc.score.noise import karras_sigmas
from gpc.score.samplers import euler, langevin, last, teleport

SHORT = replace(ACTIONS, horizon=2)
WIDE, NARROW = Gaussian(-1.0, 0.8), Gaussian(1.0, 0.4)
PAIR = [FixedPolicy(WIDE, SHORT), FixedPolicy(NARROW, SHORT)]


class Mixture:
    """A mixture of Gaussians in one dimension, as a denoiser."""

    def __init__(self, shares, means, stds):
        self.shares, self.means, self.stds = (torch.tensor(v, dtype=torch.float64) for v in (shares, means, stds))

    def __call__(self, x, sigma):
        variance, spread = self.stds**2, self.stds**2 + sigma**2
        log = self.shares.log() - (x[..., None] - self.means) ** 2 / (2 * spread) - spread.log() / 2
        each = (variance * x[..., None] + sigma**2 * self.means) / spread
        return (log.softmax(-1) * each).sum(-1)


def sample(policy, sampling, chunks=4000):
    shape = (sampling.n_noise_draws(policy), chunks, policy.actions.horizon, 2)
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sample_chunk(policy, state(chunks), noise, sampling)


def product():
    """Two mixtures and the closed form of their product: its modes' share on the left and mean."""
    one, other = Mixture([0.5, 0.5], [-1.0, 1.0], [0.3, 0.3]), Mixture([0.8, 0.2], [-1.0, 1.0], [0.6, 0.3])
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)[:, None]

    def density(m):
        return (m.shares * torch.exp(-((x - m.means) ** 2) / (2 * m.stds**2)) / m.stds).sum(-1)

    both = density(one) * density(other)
    both = both / both.sum()
    return one, other, float(both[x[:, 0] < 0].sum()), float((both * x[:, 0]).sum())


def sampled_product(corrections, rate):
    one, other, _, _ = product()

    def summed(x, sigma):  # the product of densities: the sum of scores
        return one(x, sigma) + other(x, sigma) - x

    generator = torch.Generator().manual_seed(0)
    shape = (20000, 1, 1)
    grid = karras_sigmas(30, 0.02, 10.0)
    x = grid[0] * torch.randn(shape, dtype=torch.float64, generator=generator)
    noise = lambda i: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return last(langevin(summed, x, grid, noise, corrections, rate))


def test_corrections_lead_to_the_product_of_two_mixtures():
    *_, share, mean = product()
    plain, corrected = sampled_product(0, 0.1), sampled_product(60, 0.1)
    off = [abs(float((x < 0).double().mean()) - share) for x in (plain, corrected)]
    assert off[1] < 0.03
    assert off[1] < off[0]
    assert corrected.mean() == pytest.approx(mean, abs=0.06)


def test_a_corrected_product_of_gaussians_has_its_mean_and_spread():
    precision = 1 / WIDE.std**2 + 1 / NARROW.std**2
    mean, std = (WIDE.mean / WIDE.std**2 + NARROW.mean / NARROW.std**2) / precision, precision**-0.5
    chunks = sample(guide(PAIR, [1, 1]), Sampling(Langevin(60, 0.2), 20))
    assert chunks.mean() == pytest.approx(mean, abs=0.02)
    assert chunks.std() == pytest.approx(std, rel=0.03)
    plain = sample(guide(PAIR, [1, 1]), Sampling("euler", 200))
    assert abs(plain.std() - std) > 5 * abs(chunks.std() - std)


def test_no_correction_is_euler_exactly():
    grid, x = karras_sigmas(9, 0.02, 10.0), 10 * torch.ones(3, 2, 2, dtype=torch.float64)
    assert torch.equal(last(langevin(WIDE, x, grid, lambda i: x, 0, 0.1)), last(euler(WIDE, x, grid)))


def test_an_average_is_that_of_the_chunks_that_the_members_sample():
    policy, sampling = AveragedChunks(PAIR, [0.3, 0.7]), Sampling(steps=6)
    noise = torch.randn(2, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = [sample_chunk(p, state(5), noise[k : k + 1], sampling) for k, p in enumerate(PAIR)]
    together = sample_chunk(policy, state(5), noise, sampling)
    torch.testing.assert_close(together, 0.3 * own[0] + 0.7 * own[1], atol=1e-12, rtol=0)


def test_an_average_of_one_is_that_policy_exactly():
    one = AveragedChunks(PAIR).with_weights(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(sample(one, Sampling(), 8), sample(compose(PAIR[1:]), Sampling(), 8))


def test_an_average_has_rows_of_weights_and_parents_as_any_composition_has():
    actor = ChunkActor(AveragedChunks(PAIR), Sampling(steps=4), 2)
    seeds, observation = np.arange(3), {"state": np.zeros((3, 2, 3), np.float32)}
    weights = np.array([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0]])
    mixed = actor(observation, weights, seeds, seeds)
    for row, parent in ((0, PAIR[0]), (2, PAIR[1])):
        alone = ChunkActor(compose([parent]), Sampling(steps=4), 2)(observation, weights[:, :1] * 0 + 1, seeds, seeds)
        assert np.array_equal(mixed[row], alone[row])
    with pytest.raises(InputError, match=r"sum to 1\.1"):
        actor.check([0.5, 0.6])


def test_an_average_of_the_best_of_several_is_that_of_each_members_best():
    policy, sampling = AveragedChunks(PAIR, [0.3, 0.7]), Sampling(steps=4, best_of=BestOf(3))
    assert sampling.n_noise_draws(policy) == 6
    noise = torch.randn(6, 5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    best = [sample_chunk(p, state(5), noise[3 * k : 3 * k + 3], sampling) for k, p in enumerate(PAIR)]
    average = sample_chunk(policy, state(5), noise, sampling)
    torch.testing.assert_close(average, 0.3 * best[0] + 0.7 * best[1], atol=1e-12, rtol=0)


def test_an_average_is_no_denoiser():
    with pytest.raises(InputError, match="no denoiser"):
        compose([AveragedChunks(PAIR), PAIR[0]])
    with pytest.raises(InputError, match="no denoiser"):
        AveragedChunks(PAIR).condition(state(2))
    with pytest.raises(InputError, match="steer the policies, then compose them"):
        steer(AveragedChunks(PAIR), "smoothness")


def test_the_most_typical_chunk_is_a_sample_of_the_larger_group():
    chunks = torch.randn(9, 50, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    chunks[:3] += 20
    chosen = medoid(chunks)
    assert bool((chosen >= 3).all())
    assert len(set(chosen.tolist())) > 1


def test_best_of_several_stays_nearer_to_the_middle_and_of_one_is_the_sampler_itself():
    policy = compose(PAIR, [0.5, 0.5])
    alone, best = sample(policy, Sampling(), 1000), sample(policy, Sampling(best_of=BestOf(8)), 1000)
    assert best.std() < 0.8 * alone.std()
    assert best.mean() == pytest.approx(float(alone.mean()), abs=0.05)


def test_best_of_several_under_a_weight_for_each_row():
    weights = torch.tensor([[0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
    sampling = Sampling(best_of=BestOf(4))
    noise = torch.randn(4, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    together = sample_chunk(compose(PAIR, weights), state(2), noise, sampling)
    for row in range(2):
        own = sample_chunk(compose(PAIR, weights[row]), state(1), noise[:, row : row + 1], sampling)
        torch.testing.assert_close(own, together[row : row + 1], atol=1e-12, rtol=0)


def test_a_teleport_is_exact_for_a_gaussian_of_its_spread():
    x, high, low = torch.randn(100, 2, 2, dtype=torch.float64), torch.tensor(40.0), torch.tensor(1.5)
    exact = WIDE.mean + ((0.64 + low**2) / (0.64 + high**2)).sqrt() * (40 * x - WIDE.mean)
    torch.testing.assert_close(teleport(WIDE, 40 * x, high, low, 0.8), exact, atol=1e-6, rtol=0)
    mismatch = (teleport(WIDE, 40 * x, high, low, 0.2) - exact).abs().max()
    assert mismatch > 1e-3


def test_a_teleport_of_no_spread_is_an_euler_step():
    x, grid = 40 * torch.ones(3, 2, 2, dtype=torch.float64), torch.tensor([40.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(teleport(WIDE, x, grid[0], grid[1], 0.0), last(euler(WIDE, x, grid)), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Langevin(-1), "sampler.method.corrections=-1"),
        (lambda: Langevin(rate=1.5), "sampler.method.rate=1.5"),
        (lambda: BestOf(1), "sampler.best_of.n=1"),
        (lambda: Sampling(Teleport(100.0)), "sampler.method.sigma=100"),
        (lambda: Sampling(Teleport(1.0), grid="trained"), "sampler.grid=karras"),
        (lambda: Sampling(Teleport(1.0), steps=1), "sampler.steps=2"),
        (lambda: Teleport(1.0, method="heun"), "unknown sampler 'heun'"),
        (lambda: Sampling("langevin"), "give {type: langevin}"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_method_is_built_from_plain_data():
    data = {
        "method": {"type": "teleport", "sigma": 2, "method": {"type": "langevin", "corrections": 3}},
        "best_of": {"n": 4},
    }
    assert convert(Sampling, data, "sampler") == Sampling(Teleport(2.0, method=Langevin(3)), best_of=BestOf(4))
    for wrong in ({"type": "langevin", "steps": 3}, {"type": "heun"}, {"corrections": 3}):
        with pytest.raises(InputError, match="sampler"):
            convert(Sampling, {"method": wrong}, "sampler")


def test_a_teleport_then_an_ancestral_sampler_draws_noise_for_its_steps():
    sampling = Sampling(Teleport(1.5, 0.8, "ancestral"), 200)
    assert sampling.n_noise_draws(PAIR[0]) == 201
    chunks = sample(PAIR[0], sampling, 1000)
    assert chunks.mean() == pytest.approx(WIDE.mean, abs=0.05)
    assert chunks.std() == pytest.approx(WIDE.std, rel=0.05)
