"""Composition against closed forms and against the paper's formula in a diffusers scheduler."""

import re
from dataclasses import dataclass, replace
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from models import ACTIONS, FixedPolicy, Gaussian, RandomNetwork, either, guide, state
from test_denoise import ideal

import gpc
from gpc.composition import composed as composition
from gpc.composition.average import AveragedChunks
from gpc.composition.composed import ComposedDenoiser, ComposedPolicy, as_composition, compose
from gpc.composition.composers import Convex, Guidance
from gpc.errors import InputError, RunError
from gpc.inference.actor import ChunkActor
from gpc.inference.chunk import sample_actions, sample_chunk
from gpc.inference.settings import Sampling
from gpc.policy.adapt import rename
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.keyed_noise import keyed_noise
from gpc.score.noise import Karras, LinearFlow, NoiseLevels, VariancePreserving, trained_sigmas
from gpc.score.samplers import euler, last

COSINE = VariancePreserving.squaredcos(100)


@dataclass(frozen=True)
class ByLevel:
    """A composer from outside gpc: one convex combination above sigma 1, another below."""

    rows: tuple[list[float], list[float]]
    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def start(self):
        return self

    def __call__(self, x, sigma, denoised, mask):
        return self._at(float(sigma))(x, sigma, denoised, mask)

    def active_members(self, mask, sigma):
        rows = [Convex(row) for row in self.rows] if sigma is None else [self._at(sigma)]
        return [any(uses) for uses in zip(*(row.active_members(mask, sigma) for row in rows), strict=True)]

    def _at(self, sigma):
        return Convex(self.rows[sigma <= 1])


NARROW = Sampling(steps=30, sigma_max=20.0, sigma_min=0.05)


def noise(batch=4, seed=3):
    return torch.randn(1, batch, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("combine", "weights"),
    [(compose, [0.2, 0.5, 0.3]), (guide, [0.2, 0.5, 0.3]), (guide, [1.8, -0.5, -0.3]), (guide, [1.5, 0.4, -0.2])],
)
def test_the_combination_of_gaussian_scores_is_the_product_density(combine, weights):
    """prod_i N(m_i, v_i)^w_i is Gaussian with precision sum w_i / v_i; noised members have v_i + sigma^2.

    Signed weights and weights that do not sum to one are no exception.
    """
    members = [Gaussian(-1.0, 0.3), Gaussian(0.5, 0.8), Gaussian(2.0, 1.5)]
    weights = torch.tensor(weights, dtype=torch.float64)
    composed = combine([FixedPolicy(m) for m in members], weights).condition(state(8))
    for sigma in (0.01, 0.5, 3.0, 50.0):
        x = 5 * noise(8)[0]
        level = torch.tensor(sigma, dtype=torch.float64)
        precisions = torch.tensor([1 / (m.std**2 + sigma**2) for m in members], dtype=torch.float64)
        means = torch.tensor([m.mean for m in members], dtype=torch.float64)
        precision = (weights * precisions).sum()
        mean = (weights * precisions * means).sum() / precision
        score = (composed(x, level) - x) / sigma**2
        torch.testing.assert_close(score, precision * (mean - x), atol=1e-9, rtol=1e-9)


def test_the_sample_of_equal_spreads_is_the_weighted_mean():
    """For equal variances the product at every level is the noised product: the composition is exact end to end."""
    members = [Gaussian(-1.0, 0.4), Gaussian(2.0, 0.4)]
    policy = compose([FixedPolicy(m) for m in members], [0.25, 0.75])
    x = sample_chunk(policy, state(4), noise(), Sampling("dpmpp_2m", 400, 50.0, 0.001))
    target = Gaussian(0.25 * -1.0 + 0.75 * 2.0, 0.4)
    # The probability-flow ODE maps x(sigma_max) to the mean plus its deviation, scaled.
    start = 50.0 * noise()[0]
    wanted = target.mean + (start - target.mean) * target.std / (target.std**2 + 50.0**2) ** 0.5
    torch.testing.assert_close(x, wanted, atol=2e-3, rtol=0)


def test_a_noise_a_velocity_and_an_edm_model_of_one_distribution_compose_to_it():
    gaussian = Gaussian(0.3, 0.5)
    members = [
        FixedPolicy(ideal("noise"), levels=COSINE.levels),
        FixedPolicy(ideal("velocity"), levels=LinearFlow().levels),
        FixedPolicy(ideal("edm"), levels=Karras(0.5, 0.005).levels),
    ]
    policy = compose(members, [0.5, 0.3, 0.2])
    single = FixedPolicy(gaussian, levels=policy.levels)
    assert policy.levels.trained is not None
    found = sample_chunk(policy, state(64), noise(64), NARROW)
    torch.testing.assert_close(found, sample_chunk(single, state(64), noise(64), NARROW), atol=1e-10, rtol=0)
    assert found.mean() == pytest.approx(0.3, abs=0.05)
    assert found.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("combine", [compose, guide])
@pytest.mark.parametrize("parent", [0, 1])
def test_one_hot_weights_are_the_parent_bit_for_bit(parent, combine, parents):
    observation = {key: torch.rand(20, 2, *shape) for p in parents for key, shape in p.observations.shapes.items()}
    policy = combine(parents, [float(i == parent) for i in range(2)])
    x = noise(20)
    own = {key: observation[key] for key in parents[parent].observations.shapes}
    alone = sample_chunk(parents[parent], own, x, Sampling())
    assert torch.equal(sample_chunk(policy, observation, x, Sampling()), alone)
    assert torch.equal(sample_chunk(combine([parents[parent]], [1.0]), own, x, Sampling()), alone)


@pytest.mark.parametrize(("combine", "mixture"), [(compose, [0.4, 0.6]), (guide, [-0.6, 1.6])])
def test_one_hot_rows_of_a_mixed_batch_are_the_parents_own_actions(combine, mixture, parents):
    actor = ChunkActor(combine(parents, [0.5, 0.5]), Sampling(), 8)
    frames = {key: torch.rand(9, 2, *shape).numpy() for p in parents for key, shape in p.observations.shapes.items()}
    seeds, chunks = torch.arange(9).numpy(), torch.zeros(9, dtype=torch.int64).numpy()
    weights = torch.tensor([[1.0, 0.0], mixture, [0.0, 1.0]], dtype=torch.float64).repeat(3, 1).numpy()
    mixed = actor(frames, weights, seeds, chunks)
    for k, parent in enumerate(parents):
        own = {key: frames[key] for key in parent.observations.shapes}
        alone = ChunkActor(compose([parent], [1.0]), Sampling(), 8)(own, weights[:, :1] * 0 + 1, seeds, chunks)
        assert (mixed[2 * k :: 3] == alone[2 * k :: 3]).all()
    policy = combine(parents, mixture)
    drawn = keyed_noise(seeds, chunks, 1, policy.actions.shape)
    both = policy.actions.decode(sample_chunk(policy, policy.observations.read(frames), drawn, Sampling()))[1::3, 1:9]
    torch.testing.assert_close(torch.from_numpy(mixed[1::3]), both, atol=1e-3, rtol=0)  # of 512


def test_each_row_has_its_own_weights():
    members = [FixedPolicy(Gaussian(-1.0, 0.3)), FixedPolicy(Gaussian(2.0, 1.0))]
    rows = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    together = sample_chunk(compose(members, rows), state(4), noise(), NARROW)
    for i, row in enumerate(rows):
        alone = sample_chunk(compose(members, row), state(1), noise()[:, i : i + 1], NARROW)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("combine", "weights"), [(compose, [0.3, 0.7]), (guide, [2.5, -1.5])])
def test_the_papers_formula_in_a_diffusers_scheduler_gives_our_chunk(combine, weights):
    """w1 * eps1 + w2 * eps2 of two noise models of one schedule, DDIM, 100 steps: composition (arXiv 2510.01068, eq. 7) and
    classifier-free guidance (arXiv 2207.12598, eq. 6)."""
    networks = [RandomNetwork(1), RandomNetwork(2)]
    scheduler = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(COSINE.betas, dtype=torch.float64), 0)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(100)
    x = start = noise()[0]
    for t in scheduler.timesteps:
        label = t.expand(len(x))
        eps = sum(w * network(x, label) for w, network in zip(weights, networks, strict=True))
        x = scheduler.step(eps, int(t), x, eta=0.0).prev_sample
    members = [FixedPolicy(NetworkDenoiser(n, COSINE, "noise", torch.float64), levels=COSINE.levels) for n in networks]
    sigmas = trained_sigmas(COSINE.levels)
    denoiser = combine(members, weights).condition(state(4))
    ours = last(euler(denoiser, start / COSINE.scale(sigmas[0]), sigmas))
    assert (ours - x).abs().max() <= 1e-6


def test_steps_that_only_one_chunk_has_are_its_own():
    long, short = Gaussian(1.0, 0.5), Gaussian(-1.0, 0.5)
    spec = FixedPolicy(long).actions
    policy = compose([FixedPolicy(long), FixedPolicy(short, replace(spec, horizon=4, start=2))], [0.5, 0.5])
    x, level = noise()[0], torch.tensor(1.0, dtype=torch.float64)
    out = policy.condition(state(4))(x, level)
    both = (long(x, level) + short(x, level)) / 2
    torch.testing.assert_close(out[:, 2:6], both[:, 2:6])
    torch.testing.assert_close(out[:, 6:], long(x, level)[:, 6:])
    torch.testing.assert_close(out[:, :2], long(x, level)[:, :2])


def test_a_member_outside_its_trained_levels_is_dropped_and_the_rest_renormalised():
    members = [
        FixedPolicy(Gaussian(1.0), levels=NoiseLevels(0.1, 2.0)),
        FixedPolicy(Gaussian(2.0)),
        FixedPolicy(Gaussian(4.0)),
    ]
    denoiser = compose(members, [0.5, 0.2, 0.3]).condition(state(4))
    x, level = noise()[0], torch.tensor(5.0, dtype=torch.float64)
    wanted = 0.4 * Gaussian(2.0)(x, level) + 0.6 * Gaussian(4.0)(x, level)
    torch.testing.assert_close(denoiser(x, level), wanted)
    with pytest.raises(InputError, match="outside what every policy was trained for"):
        compose(members[:1], [1.0]).condition(state(4))(x, level)


def test_nothing_is_guided_where_a_member_with_weight_has_no_opinion():
    """Steps 0 and 1 are the first member's, 4 and 5 the second's, and only the third was trained at sigma = 5."""
    members = [constant(1.0, horizon=4), constant(8.0, horizon=4, start=2)]
    x = torch.zeros(1, 6, 2, dtype=torch.float64)
    found = guide(members, [3.0, -2.0]).condition(state())(x, torch.tensor(1.0, dtype=torch.float64))
    assert found[0, :, 0].tolist() == [1, 1, 3 - 16, 3 - 16, 8, 8]
    low = NoiseLevels(0.1, 2.0)
    members = [FixedPolicy(Gaussian(1.0)), FixedPolicy(Gaussian(2.0), levels=low), FixedPolicy(Gaussian(4.0))]
    x, level = noise()[0], torch.tensor(5.0, dtype=torch.float64)
    found = guide(members, [1.5, -1.0, 0.5]).condition(state(4))(x, level)
    torch.testing.assert_close(found, 0.75 * Gaussian(1.0)(x, level) + 0.25 * Gaussian(4.0)(x, level))


def test_guidance_asks_no_member_without_weight_and_takes_the_levels_of_those_with():
    narrow = NoiseLevels(0.1, 2.0)
    whole, other = FixedPolicy(Gaussian()), FixedPolicy(Gaussian(), levels=narrow)
    assert guide([whole, other], [1.0, 0.0]).levels == whole.levels
    assert guide([whole, other], [1.5, -0.5]).levels == narrow


def test_a_thread_for_each_member_changes_no_bit(monkeypatch, parents):
    observation = {key: torch.rand(32, 2, *shape) for p in parents for key, shape in p.observations.shapes.items()}
    policy = compose(parents, [0.4, 0.6])
    threaded = sample_chunk(policy, observation, noise(32), Sampling())
    monkeypatch.setattr(composition, "THREADED_BATCH", 1000)
    assert torch.equal(threaded, sample_chunk(policy, observation, noise(32), Sampling()))


def test_compositions_nested_three_deep_in_the_second_place_end(parents):
    a, b = parents[:2]
    policy = a
    for _ in range(3):
        policy = compose([b, policy])
    observation = {key: torch.rand(32, 2, *shape) for key, shape in policy.observations.shapes.items()}
    drawn = noise(32)
    sampled = []
    worker = Thread(target=lambda: sampled.append(sample_chunk(policy, observation, drawn, Sampling())), daemon=True)
    worker.start()
    worker.join(20)
    assert sampled, "the members wait for each other's threads"
    flat = compose([b, a], [7 / 8, 1 / 8])
    torch.testing.assert_close(sampled[0], sample_chunk(flat, observation, drawn, Sampling()))


@pytest.mark.parametrize(
    "composer", [lambda ps: compose(ps, [0.3, 0.7]), lambda ps: compose(ps, ByLevel(([1, 0], [0, 1])))]
)
def test_each_row_is_denoised_at_its_own_level(composer):
    members = [FixedPolicy(Gaussian(-1.0, 0.3)), FixedPolicy(Gaussian(2.0, 0.8))]
    denoiser = composer(members).condition(state(4))
    x, sigmas = 3 * noise()[0], torch.tensor([0.1, 5.0, 0.1, 2.0], dtype=torch.float64)
    together = denoiser(x, sigmas)
    for row, sigma in enumerate(sigmas):
        assert torch.equal(together[row], denoiser(x, sigma)[row])


def test_a_composer_that_follows_a_batch_refuses_rows_of_several_levels():
    denoiser = either([FixedPolicy(Gaussian(-1.0)), FixedPolicy(Gaussian(2.0))]).condition(state(2))
    with pytest.raises(InputError, match="needs one noise level for all rows"):
        denoiser(noise(2)[0], torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_a_member_without_weight_is_not_asked():
    def never(x, sigma):
        raise AssertionError("asked")

    policy = compose([FixedPolicy(Gaussian()), FixedPolicy(never)], [1.0, 0.0])
    sample_chunk(policy, state(4), noise(), NARROW)


def test_a_composition_composes_again():
    a, b, c = (FixedPolicy(Gaussian(m, 0.5)) for m in (-1.0, 0.0, 2.0))
    nested = compose([compose([a, b], [0.5, 0.5]), c], [0.6, 0.4])
    flat = compose([a, b, c], [0.3, 0.3, 0.4])
    found = [sample_chunk(p, state(4), noise(), NARROW) for p in (nested, flat)]
    torch.testing.assert_close(*found, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("combine", "weights", "message"),
    [
        (compose, [0.5, 0.6], "0.6] sum to 1.1; convex"),
        (compose, [1.5, -0.5], "convex weights are >= 0 and sum to 1; signed weights need gpc.Guidance"),
        (compose, [[1.0, 0.0], [0.7, 0.7]], "[0.7, 0.7] sum to 1.4"),
        (compose, [1.0], "1 weights for 2 policies"),
        (compose, [[[0.5, 0.5]]], "shape"),
        (compose, [float("nan"), 1.0], "convex"),
        (guide, [0.5, -0.5], "0.5, -0.5] sum to 0; guidance weights are finite and sum to more than 0"),
        (guide, [[1.0, 0.0], [0.5, -1.0]], "[0.5, -1] sum to -0.5"),
        (guide, [float("nan"), 1.0], "guidance"),
        (guide, [float("inf"), 1.0], "guidance"),
        (guide, [1.0], "1 weights for 2 policies"),
    ],
)
def test_weights_that_the_composer_does_not_take_are_refused(combine, weights, message):
    with pytest.raises(InputError, match=re.escape(message)):
        combine([FixedPolicy(Gaussian()), FixedPolicy(Gaussian())], weights)


def test_a_parent_that_reads_fewer_steps_acts_alone_in_a_batch_with_the_mixture():
    short = replace(FixedPolicy(Gaussian(2.0)), observations=ObservationSpec({"state": (3,)}, 1))
    actor = ChunkActor(compose([FixedPolicy(Gaussian(-1.0)), short], [0.5, 0.5]), NARROW, 8)
    weights, seeds = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).double().numpy(), torch.tensor([7, 7]).numpy()
    found = actor({"state": torch.zeros(2, 2, 3).numpy()}, weights, seeds, seeds)
    alone = ChunkActor(compose([short], [1.0]), NARROW, 8)
    assert (found[:1] == alone({"state": torch.zeros(1, 1, 3).numpy()}, weights[:1, 1:], seeds[:1], seeds[:1])).all()


def test_other_weights_are_of_the_same_composer():
    members = [FixedPolicy(Gaussian()), FixedPolicy(Gaussian(2.0))]
    guided = guide(members, [0.5, 0.5]).with_weights(torch.tensor([1.5, -0.5], dtype=torch.float64))
    assert isinstance(guided.composer, Guidance)
    with pytest.raises(InputError, match="convex"):
        compose(members, [0.5, 0.5]).check_weights([1.5, -0.5])
    with pytest.raises(InputError, match="3 weights for 2 policies"):
        guided.check_weights([1.5, -0.5, 0.0])


def test_a_composer_without_weights_says_so():
    class Mean:
        stochastic, linear = False, True

        def start(self):
            return self

        def __call__(self, x, sigma, denoised, mask):
            return sum(denoised) / len(denoised)

        def active_members(self, mask, sigma):
            return [True] * len(mask)

    policy = ComposedPolicy((FixedPolicy(Gaussian()), FixedPolicy(Gaussian(2.0))), Mean())
    with pytest.raises(InputError, match="Mean takes no weights"):
        policy.with_weights(torch.tensor([0.5, 0.5]))


def test_nothing_to_compose_is_refused():
    with pytest.raises(InputError, match="at least one policy"):
        compose([], [])


def test_weights_are_renormalised_where_only_some_have_an_opinion():
    mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])[..., None]
    x = torch.zeros(1, 2, 1, dtype=torch.float64)
    out = Convex(torch.tensor([0.75, 0.25]))(x, torch.tensor(1.0), [x + 1, x + 5], mask)
    assert out.flatten().tolist() == [2.0, 5.0]


def test_the_composed_denoiser_is_a_denoiser_over_the_union_of_the_chunks():
    early = ActionSpec(4, (1.0,), (0.0,), ("x",), start=-2)
    late = ActionSpec(6, (1.0,), (0.0,), ("x",), start=1)
    policy = compose([FixedPolicy(Gaussian(), early), FixedPolicy(Gaussian(), late)], [0.5, 0.5])
    assert (policy.actions.start, policy.actions.horizon) == (-2, 9)
    denoiser = policy.condition(state(2))
    assert isinstance(denoiser, ComposedDenoiser)
    x = torch.zeros(2, 9, 1, dtype=torch.float64)
    assert denoiser(x, torch.tensor(1.0).double()).shape == (2, 9, 1)


def test_the_noise_of_a_chunk_is_the_same_for_every_candidate():
    seeds = torch.tensor([5, 5]).numpy()
    a, b = keyed_noise(seeds, seeds, 1, ACTIONS.shape)[0]
    assert torch.equal(a, b)


def test_the_papers_formula_in_ddpm_with_clip_sample_is_our_sampled_chunk(monkeypatch):
    """The clip acts on the composed x0; diffusers walks the very steps onto which our grid was snapped."""
    networks, weights, sampling = [RandomNetwork(1), RandomNetwork(2)], [0.3, 0.7], Sampling("ancestral", 20, 3000.0)
    sigmas = sampling.sigmas(COSINE.levels)
    noises = torch.randn(len(sigmas), 4, 16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(COSINE.betas, dtype=torch.float64), 0)
    scheduler.set_timesteps(timesteps=COSINE.label(sigmas[:-1]).tolist())
    drawn = iter(noises[1:])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn))
    x = COSINE.scale(sigmas[0]) * sigmas[0] * noises[0]
    for t in scheduler.timesteps:
        eps = sum(w * network(x, t.expand(len(x))) for w, network in zip(weights, networks, strict=True))
        x = scheduler.step(eps, int(t), x).prev_sample
    members = [
        FixedPolicy(NetworkDenoiser(n, COSINE, "noise", torch.float64), replace(ACTIONS, bound=1.0), COSINE.levels)
        for n in networks
    ]
    assert (sample_chunk(compose(members, weights), state(4), noises, sampling) - x).abs().max() <= 1e-8


def constant(value, **spec):
    return FixedPolicy(lambda x, sigma: torch.full_like(x, value), replace(ACTIONS, **spec))


def test_a_member_without_weight_speaks_only_where_no_weighted_chunk_has_the_step():
    members = [constant(1.0, horizon=4), constant(8.0, horizon=4, start=2)]
    x, level = torch.zeros(1, 6, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    found = compose(members, [1.0, 0.0]).condition(state())(x, level)
    assert found[0, :, 0].tolist() == [1, 1, 1, 1, 8, 8]


def test_rows_of_different_support_fall_back_as_each_row_alone_does():
    members = [constant(1.0, horizon=4), constant(8.0, horizon=4, start=2), constant(8.0, horizon=4, start=2)]
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    x, level = torch.zeros(2, 6, 2, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    together = compose(members, rows).condition(state(2))(x, level)
    alone = [compose(members, row).condition(state())(x[:1], level) for row in rows]
    torch.testing.assert_close(together, torch.cat(alone))


def test_a_nan_names_the_member_that_returned_it():
    broken = FixedPolicy(lambda x, sigma: x * float("nan"), name="broken")
    policy = compose([FixedPolicy(Gaussian()), broken], [0.5, 0.5])
    with pytest.raises(RunError, match="policy 'broken' returned NaN"):
        sample_chunk(policy, state(4), noise(), NARROW)


def test_levels_without_weight_count_where_the_member_fills_steps():
    narrow = NoiseLevels(0.1, 2.0)
    beside, longer = (
        FixedPolicy(Gaussian(), replace(ACTIONS, horizon=horizon), narrow, name=str(horizon)) for horizon in (16, 20)
    )
    whole = FixedPolicy(Gaussian())
    assert compose([whole, beside], [1.0, 0.0]).levels == whole.levels
    assert compose([whole, longer], [1.0, 0.0]).levels == narrow


def test_weights_on_members_outside_their_levels_pass_to_the_others():
    """Only the member without weight was trained at this sigma: it speaks, instead of 0 / 0."""
    members = [FixedPolicy(Gaussian(1.0), levels=NoiseLevels(0.1, 2.0)), FixedPolicy(Gaussian(2.0))]
    x, level = noise()[0], torch.tensor(5.0, dtype=torch.float64)
    found = compose(members, [1.0, 0.0]).condition(state(4))(x, level)
    torch.testing.assert_close(found, Gaussian(2.0)(x, level))


@pytest.mark.parametrize("parent", [0, 1])
def test_a_parent_in_a_search_is_the_parent_even_where_normalisers_differ(parent, parents, spoiled):
    """The other policy's coordinate, noise levels and chunk leave no trace."""
    stretched = gpc.load_policy(spoiled("tiny-flow", scale=[100.0, 100.0], bound=None))
    members = [parents[0], stretched]
    frames = {key: torch.rand(5, 2, *shape).numpy() for p in members for key, shape in p.observations.shapes.items()}
    seeds, chunks = torch.arange(5).numpy(), torch.zeros(5, dtype=torch.int64).numpy()
    weights = torch.zeros(5, 2, dtype=torch.float64).numpy()
    weights[:, parent] = 1
    found = ChunkActor(compose(members, [0.5, 0.5]), Sampling(), 8)(frames, weights, seeds, chunks)
    own = {key: frames[key] for key in members[parent].observations.shapes}
    alone = ChunkActor(compose([members[parent]], [1.0]), Sampling(), 8)(own, weights[:, :1] * 0 + 1, seeds, chunks)
    assert (found == alone).all()


def observe(policy):
    generator = torch.Generator().manual_seed(0)
    spec = policy.observations
    return {key: torch.rand(3, spec.n_obs_steps, *shape, generator=generator) for key, shape in spec.shapes.items()}


def test_a_composer_from_outside_mixes_each_stretch_of_sigma_with_its_own_weights(parents):
    policy = compose(parents, ByLevel(([0.9, 0.1], [0.2, 0.8])))
    observation, x = observe(policy), torch.randn(3, 16, 2, dtype=torch.float64)
    for sigma, weights in ((5.0, [0.9, 0.1]), (1.0001, [0.9, 0.1]), (1.0, [0.2, 0.8]), (0.1, [0.2, 0.8])):
        level = torch.tensor(sigma, dtype=torch.float64)
        mixed = compose(parents, weights).condition(observation)(x, level)
        assert torch.equal(policy.condition(observation)(x, level), mixed)


def test_a_composer_from_outside_says_which_members_are_called_at_a_level():
    called = []

    def member(name):
        def denoised(x, sigma):
            called.append(name)
            return x

        return FixedPolicy(denoised)

    policy = compose([member("coarse"), member("fine")], ByLevel(([1, 0], [0, 1])))
    denoiser = policy.condition(observe(policy))
    for sigma in (3.0, 0.3):
        denoiser(torch.zeros(3, 16, 2, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
    assert called == ["coarse", "fine"]


def test_a_composition_without_weights_is_a_policy_to_sample_and_to_compose(parents):
    policy = compose(parents, ByLevel(([0.9, 0.1], [0.2, 0.8])))
    observation, x = observe(policy), noise(3)
    alone = sample_chunk(policy, observation, x, NARROW)
    assert torch.equal(sample_chunk(compose([policy], [1.0]), observation, x, NARROW), alone)
    with pytest.raises(InputError, match="ByLevel takes no weights"):
        policy.with_weights(torch.tensor([0.5, 0.5]))


def act(policy, weights, rows=4):
    seeds = np.arange(rows)
    observation = {"state": np.zeros((rows, 2, 3), np.float32)}
    return ChunkActor(policy, NARROW, 8)(observation, np.tile(np.array([weights], float), (rows, 1)), seeds, seeds)


def test_a_composition_without_weights_rolls_out_as_one_policy():
    policy = compose([FixedPolicy(Gaussian(-1.0)), FixedPolicy(Gaussian(2.0))], ByLevel(([1, 0], [0, 1])))
    one = as_composition(policy)
    assert (one.policies, one.weights.tolist()) == ((policy,), [1.0])
    assert as_composition(one) is one
    observation, seeds = {"state": np.zeros((4, 2, 3), np.float32)}, np.arange(4)
    chunk = sample_actions(policy, NARROW, observation, seeds, seeds)
    assert np.allclose(act(one, [1.0]), chunk[:, :8], atol=1e-12)


class Loudest:
    """A composer from outside gpc with weights: the member with the largest weight alone."""

    stochastic, linear, convex = False, False, True

    def __init__(self, weights=()):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)

    def start(self):
        return self

    def check_weights(self, weights):
        if weights.max() > 1:
            raise InputError("Loudest takes weights up to 1")

    def with_weights(self, weights):
        return Loudest(weights)

    def __call__(self, x, sigma, denoised, mask):
        return torch.stack(denoised)[self.weights.argmax(-1), torch.arange(len(x))]

    def active_members(self, mask, sigma):
        return [True] * len(mask)


def test_a_composer_with_weights_from_outside_is_searched_as_any_other():
    policy = compose([FixedPolicy(Gaussian(-1.0)), FixedPolicy(Gaussian(2.0))], Loudest())
    assert (policy.weights.tolist(), policy.convex, as_composition(policy)) == ([0.5, 0.5], True, policy)
    parents = [compose([member]) for member in policy.policies]
    for weights, parent in (([0.8, 0.2], parents[0]), ([0.1, 0.9], parents[1])):
        assert np.allclose(act(policy, weights), act(parent, [1.0]), atol=1e-12)
    with pytest.raises(InputError, match="up to 1"):
        ChunkActor(policy, NARROW, 8).check([2.0, 0.0])


def test_weights_are_checked_when_a_candidate_is_made_and_not_for_a_chunk(monkeypatch):
    actor = ChunkActor(compose([FixedPolicy(Gaussian()), FixedPolicy(Gaussian(2.0))]), NARROW, 8)
    with pytest.raises(InputError, match=r"sum to 1\.1"):
        actor.check([0.5, 0.6])
    actor.check([0.5, 0.5])
    monkeypatch.setattr(Convex, "check_weights", lambda self, weights: pytest.fail("checked again"))
    assert np.isfinite(act(actor.policy, [0.5, 0.5])).all()


WRAPPERS = [
    lambda policy: compose([FixedPolicy(Gaussian()), policy]),
    lambda policy: rename(policy, {"state": "s"}),
    lambda policy: AveragedChunks([policy]),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_composition_keeps_what_its_composer_needs(wrap):
    policy = wrap(either([FixedPolicy(Gaussian(-1.0)), FixedPolicy(Gaussian(2.0))]))
    with pytest.raises(InputError, match="take sampler=ancestral"):
        NARROW.check(policy)
    with pytest.raises(InputError, match="steer the policies, then compose them"):
        gpc.steer(policy, "smoothness")


def saying(value, name, **spec):
    """A policy that says `value`, one number for each dimension, at every step, in its own normalised units."""
    value = torch.tensor(value, dtype=torch.float64)
    spec = {"scale": (1.0,) * len(value), "offset": (0.0,) * len(value), "horizon": 4} | spec
    return FixedPolicy(lambda x, sigma: value.expand_as(x), ActionSpec(**spec), name=name)


TURNED = [
    saying([1.0, 2.0, 3.0], "a", names=("x", "y", "z")),
    saying([30.0, 20.0, 10.0], "b", names=("z", "y", "x")),
    saying([300.0, 200.0, 100.0], "c", names=("z", "y", "x")),
]


def planned(policy, rows=1):
    """What the policy's first step is, by way of what serves and deploys it."""
    seeds = np.arange(rows)
    return sample_actions(policy, Sampling(), {"state": np.zeros((rows, 2, 3))}, seeds, seeds)[:, -policy.actions.start]


def test_a_parent_alone_speaks_in_the_order_of_the_whole():
    policy = compose(TURNED, [0.2, 0.3, 0.5])
    for k, wanted in enumerate(([1, 2, 3], [10, 20, 30], [100, 200, 300])):
        alone = policy.with_weights(torch.eye(3, dtype=torch.float64)[k])
        assert (alone.policies, alone.actions.names) == ((TURNED[k],), ("x", "y", "z"))
        assert planned(alone).tolist() == [wanted]


def test_a_parent_alone_keeps_its_own_normaliser_bound_levels_and_time():
    own = replace(ACTIONS, scale=(2.0, 3.0), offset=(1.0, 0.0), names=("y", "x"), bound=3.0, dt=2.0, start=-1)
    parent = FixedPolicy(Gaussian(), own, NoiseLevels(0.1, 7.0), name="parent")
    policy = compose([FixedPolicy(Gaussian()), parent], [0.5, 0.5])
    alone = policy.with_weights(torch.tensor([0.0, 1.0]))
    assert alone.actions == replace(own, scale=(3.0, 2.0), offset=(0.0, 1.0), names=("x", "y"))
    assert alone.levels == parent.levels
    unnamed = FixedPolicy(Gaussian(), replace(own, names=None), name="parent")
    assert compose([FixedPolicy(Gaussian()), unnamed]).with_weights(torch.tensor([0.0, 1.0])).actions == unnamed.actions


def test_policies_whose_dt_is_no_multiple_of_each_others_act_without_the_one_that_both_are_multiples_of():
    """dt 1, 2 and 3: the coordinate keeps its dt of 1; only steps that nobody plans any more are gone."""
    fast, two, three = saying([0.0], "fast", horizon=20), *(saying([1.0], str(dt), dt=dt) for dt in (2.0, 3.0))
    policy = compose([fast, two, three]).with_weights(torch.tensor([0.0, 0.5, 0.5]))
    assert (policy.actions.dt, policy.actions.start, policy.actions.horizon) == (1.0, 0, 10)
    assert planned(policy).tolist() == [[1.0]]


def test_those_that_stay_must_have_every_dimension():
    arms = [
        saying([1.0], "left", names=("l",)),
        saying([2.0], "right", names=("r",)),
        saying([3.0, 4.0], "both", names=("l", "r")),
    ]
    policy = compose(arms)
    assert planned(policy.with_weights(torch.tensor([0.5, 0.5, 0.0]))).tolist() == [[1, 2]]
    assert planned(policy.with_weights(torch.tensor([0.0, 0.0, 1.0]))).tolist() == [[3, 4]]
    with pytest.raises(InputError, match="right cannot act alone: it has no l; give weight to a policy that has"):
        policy.with_weights(torch.tensor([0.0, 1.0, 0.0]))
