"""Normalisers that differ per dimension: what a network with one noise level says of actions with several, in closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian, state

from gpc.composition.align import AlignedMember
from gpc.composition.composed import compose
from gpc.composition.noise_matching import ASSUMED_STD, NoiseMatched
from gpc.composition.steering import steer
from gpc.inference.chunk import sample_chunk
from gpc.inference.settings import Sampling
from gpc.policy.adapt import rename
from gpc.policy.spec import ActionSpec
from gpc.score.keyed_noise import NoiseKeys, keyed_noise
from gpc.score.noise import karras_sigmas
from gpc.score.samplers import langevin, last
from gpc.testing.policy import check_policy


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def member(mean, std, scale=(1.0, 1.0), horizon=200, name="fixed"):
    """N(mean, std^2) in the environment's units, as a network normalised by `scale` and trained with one noise level."""

    def denoised(x, sigma):
        s = x.new_tensor(scale)
        return ((std / s) ** 2 * x + sigma**2 * mean / s) / ((std / s) ** 2 + sigma**2)

    actions = ActionSpec(horizon, scale, (0.0,) * len(scale))
    return FixedPolicy(denoised, actions, name=name)


def product(members, weights):
    """Mean and std of the exact composition prod_i N(m_i, s_i^2)^w_i."""
    precisions = [w / std**2 for (_, std), w in zip(members, weights, strict=True)]
    mean = sum(p * m for (m, _), p in zip(members, precisions, strict=True)) / sum(precisions)
    return mean, sum(precisions) ** -0.5


@pytest.mark.parametrize("sigma", [1e-4, 0.005, 0.3, 20.0])
def test_a_gaussian_of_the_expected_spread_is_denoised_exactly_whatever_noise_was_added(sigma):
    """E[x0 | x] of N(0.3, s^2) with noise ratios * sigma, dimension by dimension."""
    ratios, sigma = (1.0, 0.5, 3.0), torch.tensor(sigma, dtype=torch.float64)
    y = draw(4, 16, 3)
    noise = sigma * y.new_tensor(ratios)
    wanted = (ASSUMED_STD**2 * y + noise**2 * 0.3) / (ASSUMED_STD**2 + noise**2)
    found = NoiseMatched(Gaussian(0.3, ASSUMED_STD), tuple(r / 3 for r in ratios))(y, 3 * sigma)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("own", [False, True])
def test_what_is_told_is_what_is_seen(own):
    """Every dimension of what the network sees has the noise that it is told, also those that had less; row by row."""
    told = []

    def listen(x, sigma):
        told.append((sigma, x.std(1)))
        return x

    sigma = torch.tensor([0.7, 2.1] if own else 2.1, dtype=torch.float64)
    level = sigma.expand(2).reshape(2, 1, 1)
    x = level * torch.tensor([1 / 3, 1 / 6, 1.0], dtype=torch.float64) * draw(2, 20_000, 3)
    NoiseMatched(listen, (1 / 3, 1 / 6, 1.0))(x, sigma)
    ((heard, seen),) = told
    assert torch.equal(heard, sigma)
    torch.testing.assert_close(seen, level[:, 0].expand(2, 3), rtol=0.02, atol=0)  # one standard error is 0.5 %


def test_equal_ratios_add_no_noise():
    y, sigma = draw(4, 16, 3), torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(NoiseMatched(Gaussian(), (1.0, 1.0, 1.0))(y, sigma), Gaussian()(y, sigma))


def keys(*seeds):
    return NoiseKeys.of(np.array(seeds), np.zeros(len(seeds)))


def test_a_row_has_its_own_noise_for_each_key_stream_and_call():
    noise = keys(*range(200)).draw("a", 1, draw(200, 16, 2))
    assert torch.equal(keys(2).draw("a", 1, draw(1, 16, 2))[0], noise[2])
    tiled = keys(0, 1).tile(3).draw("a", 1, draw(6, 16, 2))
    assert torch.equal(tiled[:2], noise[:2])
    others = [keys(0).draw("b", 1, draw(1, 16, 2)), keys(0).draw("a", 2, draw(1, 16, 2))]
    initial = keyed_noise(np.array([0]), np.array([0]), 1, (16, 2))[0]
    rows = {row.numpy().tobytes() for row in torch.cat([noise, tiled[2:], *others, initial])}
    assert len(rows) == 200 + 4 + 2 + 1
    assert float(noise.mean()) == pytest.approx(0, abs=4 / noise.numel() ** 0.5)
    assert float(noise.std()) == pytest.approx(1, rel=0.04)


def added(noise_keys):
    """The noise that is added at each of three calls at two levels, (calls, batch, horizon, action)."""
    inputs = []

    def record(x, sigma):
        inputs.append(x / sigma)
        return x

    matched = NoiseMatched(record, (1.0, 0.5), "a", noise_keys)
    for level in (1.0, 1.0, 2.0):
        matched(torch.zeros(2, 4, 2, dtype=torch.float64), torch.tensor(level, dtype=torch.float64))
    return torch.stack(inputs)[..., 1:]


def test_noise_with_keys_is_new_at_every_call_and_the_same_in_a_repetition():
    first, again = added(keys(1, 2)), added(keys(2, 1))
    assert torch.equal(again.flip(1), first)
    assert len({row.numpy().tobytes() for row in first.flatten(0, 1)}) == 6


def test_noise_without_keys_depends_on_the_level_alone():
    noise = added(None)
    assert torch.equal(noise[0, 0], noise[1, 1])
    assert not torch.equal(noise[0], noise[2])


def test_a_composition_with_a_raised_member_is_the_same_in_any_batch():
    policy = compose([member(-0.1, 0.1, horizon=16), member(0.1, 0.2, (1.0, 4.0), 16)], [0.5, 0.5])
    noise = draw(1, 6, 16, 2)
    whole = sample_chunk(policy, state(6), noise, Sampling())
    assert torch.equal(sample_chunk(policy, state(6), noise, Sampling()), whole)
    alone = sample_chunk(policy, state(1), noise[:, 3:4], Sampling())
    torch.testing.assert_close(alone, whole[3:4], atol=1e-12, rtol=0)


OTHER = FixedPolicy(Gaussian(0.0, 0.3), ActionSpec(16, (1.0, 1.0), (0.0, 0.0)), name="other")
WRAPPERS = {
    "plain": lambda policy: policy,
    "steered": lambda policy: steer(policy, lambda actions, _: actions.square().sum((1, 2)) / 100),
    "nested": lambda policy: compose([OTHER, policy], [0.1, 0.9]),
    "renamed": lambda policy: rename(policy, {"state": "state"}),
    "steered in nested in renamed": lambda policy: rename(
        compose([OTHER, steer(policy, "smoothness", 0.01)], [0.1, 0.9]), {"state": "state"}
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_candidates_are_paired_in_the_added_noise_too_however_the_composition_is_wrapped(wrap):
    """Weights of 0.5 and 0.49 on the same noise: chunks differ by the weights, not by another draw."""
    members, noise = [member(-0.3, 0.3, horizon=16), member(0.3, 0.3, (1.0, 4.0), 16, "bent")], draw(1, 64, 16, 2)

    def chunks(weights, first=0):
        policy = wrap(compose(members, weights))
        noise_keys = NoiseKeys.of(np.arange(first, first + 64), np.zeros(64))
        return sample_chunk(policy, state(64), noise, Sampling(), keys=noise_keys)

    half, less = chunks([0.5, 0.5]), chunks([0.49, 0.51])
    assert float((half - less)[..., 1].std()) < 0.01
    assert float((half - chunks([0.5, 0.5], first=64))[..., 1].std()) > 0.1


def test_rounding_in_a_network_does_not_draw_other_noise():
    def rounded(x, sigma):
        return Gaussian()(x, sigma) * (1 + 1e-12)

    first, other = (FixedPolicy(denoiser, replace(ACTIONS, scale=(1.0, 4.0))) for denoiser in (Gaussian(), rounded))
    noise = draw(1, 8, 16, 2)
    found = [
        sample_chunk(compose([FixedPolicy(Gaussian(), name="flat"), p]), state(8), noise, Sampling())
        for p in (first, other)
    ]
    torch.testing.assert_close(*found, atol=1e-9, rtol=0)


def test_two_raised_members_have_noise_of_their_own():
    seen = {}

    def listening(name):
        def listen(x, sigma):
            seen[name] = x
            return Gaussian()(x, sigma)

        return FixedPolicy(listen, replace(ACTIONS, scale=(1.0, 4.0)), name=name)

    policy = compose([FixedPolicy(Gaussian(), name="flat"), listening("one"), listening("two")])
    sample_chunk(policy, state(), draw(1, 1, 16, 2), Sampling(steps=1))
    assert torch.equal(seen["one"][..., 0], seen["two"][..., 0])
    assert not torch.equal(seen["one"][..., 1], seen["two"][..., 1])


def test_the_note_says_how_much_noise_is_added():
    first, second = compose([member(0.0, 0.1), member(0.0, 0.1, (2.0, 8.0), name="bent")]).members
    assert first.warning == ""
    assert second.warning == "bent is given up to 4 times the noise: its normaliser differs per dimension"
    assert (second.needs_noise_matching, second.ratio) == (True, 0.5)
    assert second.levels.sigma_min == pytest.approx(2 * 0.001)


@pytest.mark.parametrize("ratio", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_the_ode_narrows_a_raised_dimension_by_the_ratio_at_most(ratio, std):
    """d ln|x - m| / d ln q = q^2 (u^2 + p^2) / ((u^2 + q^2) (s^2 + p^2)) u the assumed std, p = ratio q: from s / ratio to s."""
    bent = member(0.1, std * ratio, (1.0, ratio), 4000)
    policy = AlignedMember(
        bent, replace(bent.actions, scale=(1.0, 1.0))
    )  # its second dimension has 1 / ratio of the noise
    sigmas = karras_sigmas(1000, 0.0005, 20.0)
    noise = draw(1, 4000, 2)
    raised = policy.wrap(bent.denoiser)
    x = last(langevin(lambda x, sigma: policy.denoise(raised, x, sigma), 20 * noise, sigmas, None, 0, 0.1))
    q = torch.logspace(-5, 0, 4000, dtype=torch.float64) * 20 / ratio
    p = ratio * q
    slope = q**2 * (ASSUMED_STD**2 + p**2) / ((ASSUMED_STD**2 + q**2) * (std**2 + p**2))
    wanted = 20 / ratio * torch.exp(-torch.trapezoid(slope, q.log()))
    assert float(x[..., 1].std() / ratio) == pytest.approx(float(wanted), rel=0.05)
    assert 1 / ratio <= wanted / std <= 1


GAUSSIANS = [(-0.1, 0.02), (0.1, 0.05)]
SCALES = (1.0, 2.0, 4.0)  # of the second policy: it sees the noise whole, half and a quarter of it


def errors(corrections):
    """Annealed Langevin's mean less the exact composition's, in the latter's standard deviations, by dimension.

    Without the dynamics' noise: everything is linear, so x follows the mean of what it would be with it.
    """
    policy = compose([member(*GAUSSIANS[0], (1.0,) * 3), member(*GAUSSIANS[1], SCALES)], [0.5, 0.5])
    sigmas, x = karras_sigmas(10, 0.001, 0.2), torch.zeros(1, 200, 3, dtype=torch.float64)
    x = last(
        langevin(
            policy.condition(state()).with_noise_keys(keys(0)), x, sigmas, lambda i: torch.zeros(()), corrections, 0.25
        )
    )
    mean, std = product(GAUSSIANS, [0.5, 0.5])
    return ((x.mean(1)[0] - mean) / std).tolist()


def test_alignment_per_dimension_converges_to_the_exact_composition_as_the_steps_grow():
    """Four times the corrections leave at most 0.45 of the error (order 0.6), and less from step to step: the order nears one.

    Where nothing is raised (the first dimension) it is the error that any sum of scores begins with: order 0.85 here.
    """
    coarse, middle, fine = (torch.tensor(errors(corrections)) for corrections in (128, 512, 2048))
    assert (fine > 0).all()
    assert (middle < 0.45 * coarse).all()
    assert (fine < 0.39 * middle).all()
    assert fine.max() < 0.1


def test_without_an_expected_spread_it_would_not_converge(monkeypatch):
    """As sigma falls the plain denoised action of a raised member counts ratio^2 times: the mean is that of other weights."""
    monkeypatch.setattr("gpc.composition.noise_matching.ASSUMED_STD", 1e-9)
    found = errors(512)
    std = product(GAUSSIANS, [0.5, 0.5])[1]
    for dim, ratio in enumerate(SCALES):
        wrong = product(GAUSSIANS, [0.5, 0.5 * ratio**2])[0]
        assert found[dim] == pytest.approx((wrong - product(GAUSSIANS, [0.5, 0.5])[0]) / std, rel=0.05, abs=0.03)


def test_the_langevin_sample_has_the_exact_compositions_mean_and_spread():
    """2000 draws a dimension: one standard error is 0.022 of the mean and 1.6 % of the spread; the rest is the corrections'."""
    gaussians = [(-0.02, 0.02), (0.02, 0.05)]
    policy = compose([member(*gaussians[0], (1.0,) * 3, 2000), member(*gaussians[1], SCALES, 2000)], [0.5, 0.5])
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * draw(1, 2000, 3, seed=1)
    sigmas = karras_sigmas(8, 0.001, 0.2)
    denoiser = policy.condition(state()).with_noise_keys(keys(0))
    x = last(
        langevin(denoiser, x, sigmas, lambda i: torch.randn(x.shape, dtype=x.dtype, generator=generator), 400, 0.25)
    )
    mean, std = product(gaussians, [0.5, 0.5])
    assert ((x.mean(1)[0] - mean) / std).abs().max() < 0.15
    assert x.std(1)[0].tolist() == pytest.approx([std] * 3, rel=0.05)


def test_a_composition_with_a_raised_member_keeps_the_contract_of_a_policy():
    """A sigma for each row, rows that do not see each other, the same answer to the same call; it is blunter, so not `trained`."""
    bent = FixedPolicy(Gaussian(), replace(ACTIONS, scale=(1.0, 4.0)), name="bent")
    check_policy(compose([FixedPolicy(Gaussian()), bent]), trained=False)
