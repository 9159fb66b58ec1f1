"""Steering against closed forms: a Gaussian times exp(-scale J) for a linear and a quadratic cost; the choice by a critic."""

import json
from dataclasses import replace

import pytest
import torch
from models import ACTIONS, FixedPolicy, Gaussian, both, either, guide, state

from gpc.commands.cli import main
from gpc.composition.average import AveragedChunks
from gpc.composition.composed import compose
from gpc.composition.steering import conjugate_gradient, load_cost, register_cost, smoothness, steer
from gpc.errors import InputError, RunError
from gpc.inference.best_of import BestOf
from gpc.inference.chunk import sample_chunk
from gpc.inference.settings import Sampling
from gpc.policy.spec import ActionSpec

SPREAD = 0.4
SPEC = ActionSpec(8, (2.0, 3.0), (1.0, -1.0))
POLICY = FixedPolicy(Gaussian(0.3, SPREAD), SPEC, name="plain")


def noise(rows, seed=0, draws=1):
    return torch.randn(draws, rows, 8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uphill(actions, observation):
    """Linear: 0.7 of the first dimension at every step."""
    return 0.7 * actions[..., 0].sum(1)


def far_from_five(actions, observation):
    return (actions - 5).square().sum((1, 2)) / 2


def test_a_linear_cost_moves_a_gaussian_by_its_variance_times_the_gradient_exactly():
    """N(m, s^2) exp(-c g a) = N(m - c s^2 g, s^2); g = 0.7 times the scale of 2 in normalised units."""
    sampling, x = Sampling(steps=20), noise(50)
    plain = sample_chunk(POLICY, state(50), x, sampling)
    steered = sample_chunk(steer(POLICY, uphill, scale=1.5, spread=SPREAD), state(50), x, sampling)
    shift = torch.tensor([1.5 * SPREAD**2 * 0.7 * 2, 0], dtype=torch.float64)
    moved = Gaussian(0.3 - shift, SPREAD)
    exact = sample_chunk(FixedPolicy(moved, SPEC), state(50), x, sampling)
    torch.testing.assert_close(steered, exact, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        plain - steered, shift.expand_as(plain), atol=0.02, rtol=0
    )  # noise at sigma_max is not all


@pytest.mark.parametrize("scale", [0.25, 1e6])
def test_a_quadratic_cost_makes_a_gaussian_the_product_with_its_own_exactly(scale):
    """Precisions add: 1 / s^2 and scale * unit^2 at (5 - offset) / unit, per dimension; whatever the sampler, however steep."""
    unit, offset = (torch.tensor(values, dtype=torch.float64) for values in (SPEC.scale, SPEC.offset))
    precision = 1 / SPREAD**2 + scale * unit**2
    mean, std = (0.3 / SPREAD**2 + scale * unit * (5 - offset)) / precision, precision**-0.5
    exact = FixedPolicy(Gaussian(mean, std), SPEC)
    for sampling in (Sampling(), Sampling("euler", 3)):
        found = sample_chunk(steer(POLICY, far_from_five, scale, SPREAD), state(9), noise(9), sampling)
        torch.testing.assert_close(found, sample_chunk(exact, state(9), noise(9), sampling), atol=1e-9, rtol=0)


def test_conjugate_gradients_solve_each_row_as_if_alone():
    generator = torch.Generator().manual_seed(4)
    factors = torch.randn(3, 12, 12, dtype=torch.float64, generator=generator)
    matrices = factors @ factors.mT + torch.eye(12)
    right = torch.randn(3, 6, 2, dtype=torch.float64, generator=generator)

    def times(rows):
        return lambda step: (matrices[rows] @ step.flatten(1)[..., None]).reshape(step.shape)

    found = conjugate_gradient(times(slice(None)), right)
    exact = torch.linalg.solve(matrices, right.flatten(1)).reshape(right.shape)
    torch.testing.assert_close(found, exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(conjugate_gradient(times([1]), right[1:2]), found[1:2], atol=1e-13, rtol=0)


@pytest.mark.parametrize("curvature", [-3.0, 0.001, 0.9])
def test_where_a_cost_curves_down_the_step_is_that_of_its_gradient(curvature):
    """Also where the matrix, which is the identity and the Hessian, is still positive: its inverse would be a leap."""
    right = torch.ones(1, 2, 2, dtype=torch.float64)
    assert torch.equal(conjugate_gradient(lambda step: curvature * step, right), right)


def test_flat_directions_beside_steep_ones_are_solved():
    """Eigenvalues 1 and 1e8: the steep one must not hide the flat one from conjugate gradients."""
    right = torch.tensor([[[1.0, 2.0], [0.5, -1.0]]], dtype=torch.float64)
    steep = torch.tensor([1e8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradient(lambda step: steep * step, right), right / steep, atol=1e-5, rtol=0)


@pytest.mark.parametrize("radius", [0.2, 0.5])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_a_bump_round_an_obstacle_pushes_away_from_it_and_no_further(radius, scale):
    """exp(-|a|^2 / 2 r^2) at 0 curves down inside r. Nobody ends further out than its own steepest slope could take it."""

    def bump(actions, observation):
        return torch.exp(-actions.square() / (2 * radius**2)).sum((1, 2))

    around = FixedPolicy(Gaussian(0.0, 0.3), replace(ACTIONS, horizon=8))
    x = noise(200)
    plain, steered = (
        sample_chunk(p, state(200), x, Sampling()) for p in (around, steer(around, bump, scale, spread=0.3))
    )
    slope = scale * 0.3**2 * 0.607 / radius
    assert float(steered.abs().max()) < float(plain.abs().max()) + slope
    assert float(bump(steered, {}).mean()) < float(bump(plain, {}).mean())


def test_scale_zero_is_the_policy_itself_exactly():
    x = noise(5)
    plain = sample_chunk(POLICY, state(5), x, Sampling())
    assert torch.equal(sample_chunk(steer(POLICY, far_from_five, 0), state(5), x, Sampling()), plain)


def test_a_composition_is_steered_as_a_whole():
    """Of one policy twice it is that policy, steered; a linear cost over its members is the same as over all."""
    x, other = noise(5), replace(POLICY, denoiser=Gaussian(-0.2, 0.3), name="other")
    chunks = [
        sample_chunk(policy, state(5), x, Sampling())
        for policy in (
            steer(compose([POLICY, other], [0.25, 0.75]), uphill, 0.5),
            compose([steer(POLICY, uphill, 0.5), steer(other, uphill, 0.5)], [0.25, 0.75]),
        )
    ]
    torch.testing.assert_close(*chunks, atol=1e-12, rtol=0)


def test_the_cost_of_a_composition_sees_all_its_dimensions_and_guidance_does_not_multiply_it():
    left, right = (
        replace(POLICY, actions=replace(SPEC, names=(f"{side}.x", f"{side}.y")), name=side) for side in ("l", "r")
    )
    seen = []

    def watched(actions, observation):
        seen.append(actions.shape)
        return uphill(actions, observation)

    sample_chunk(steer(compose([left, right]), watched), state(5), torch.randn(1, 5, 8, 4).double(), Sampling())
    assert set(seen) == {(5, 8, 4)}
    twice, plain = guide([POLICY, replace(POLICY, name="again")], [1.0, 1.0]), guide([POLICY], [1.0])
    x, sigma = noise(5)[0], torch.tensor(0.3, dtype=torch.float64)
    pulls = [
        steer(policy, uphill).condition(state(5))(x, sigma) - policy.condition(state(5))(x, sigma)
        for policy in (twice, plain)
    ]
    torch.testing.assert_close(*pulls, atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [AveragedChunks, both, either])
def test_a_composition_that_is_no_sum_of_scores_is_not_steered(make):
    with pytest.raises(InputError, match=r"needs its members' own .* steer the policies, then compose them"):
        steer(make([POLICY, replace(POLICY, name="other")]), uphill)


def test_a_steered_policy_may_have_a_name_of_its_own():
    assert (steer(POLICY, uphill).name, steer(POLICY, uphill, name="careful").name) == ("plain", "careful")


def test_a_steered_policy_says_so_in_its_fingerprint():
    assert steer(POLICY, "smoothness", 2.0).fingerprint == "none steered by 2 smoothness, spread 0.5"
    assert steer(POLICY, uphill).fingerprint == "none steered by 1 uphill, spread 0.5"


def test_the_cost_sees_what_the_policy_sees_and_works_where_gradients_are_off():
    def towards(actions, observation):
        return (actions - observation["state"][:, -1:, :2]).square().sum((1, 2)) / 2

    x = noise(2)
    seen = {"state": torch.tensor([[[9.0, 9, 0], [2.4, 1, 0]], [[9, 9, 0], [0.8, -1.2, 0]]])}
    with torch.inference_mode():
        seen = {"state": seen["state"] + 0}  # an inference tensor, which autograd alone would refuse
        found = SPEC.decode(sample_chunk(steer(POLICY, towards, 50.0), seen, x, Sampling(steps=100)))
    torch.testing.assert_close(found, seen["state"][:, -1:, :2].double().expand_as(found), atol=0.6, rtol=0)


def test_smoothness_is_that_of_second_differences():
    straight = torch.arange(6.0).reshape(1, 6, 1).expand(2, 6, 2)
    assert smoothness(straight, {}).tolist() == [0, 0]
    bent = straight.clone()
    bent[1, 3, 0] += 2
    assert smoothness(bent, {}).tolist() == [0, 0.5 * (4 + 16 + 4)]
    rough = FixedPolicy(Gaussian(0.0, 0.5))
    x = torch.randn(1, 20, 16, 2, dtype=torch.float64)
    before, after = (
        smoothness(ACTIONS.decode(sample_chunk(policy, state(20), x, Sampling())), {}).mean()
        for policy in (rough, steer(rough, "smoothness"))
    )
    assert after < 0.6 * before


def test_a_critic_takes_the_candidate_of_least_cost():
    register_cost("uphill", uphill)
    sampling = Sampling(best_of=BestOf(5, "uphill"))
    drawn = noise(7, draws=5)
    found = SPEC.decode(sample_chunk(POLICY, state(7), drawn, sampling))
    every = torch.stack([SPEC.decode(sample_chunk(POLICY, state(7), own[None], Sampling())) for own in drawn])
    least = torch.stack([uphill(chunks, {}) for chunks in every]).argmin(0)
    torch.testing.assert_close(found, every[least, torch.arange(7)], atol=1e-12, rtol=0)
    assert len(set(least.tolist())) > 1


def test_a_cost_that_is_unknown_or_is_none_is_refused():
    with pytest.raises(InputError, match="did you mean 'smoothness'"):
        Sampling(best_of=BestOf(2, "smoothnes")).check(POLICY)
    with pytest.raises(InputError, match=r"best_of\.cost=5 is neither a cost nor the name of one"):
        BestOf(2, 5)


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        (
            lambda actions, observation: (actions.sum((1, 2)) - 1e6).log(),
            "must be one finite number for each of 3 chunks",
        ),
        (lambda actions, observation: actions.sum(), r"must be one finite number for each of 3 chunks, .* not \(\)"),
        (
            lambda actions, observation: actions.detach().sum((1, 2)),
            "has no gradient; in sampler.best_of it needs none",
        ),
        (
            lambda actions, observation: (actions * 0).sum((1, 2)).sqrt(),
            "the gradient of cost '<lambda>' is not finite",
        ),
        (lambda actions, observation: 3.0, "as a tensor of floats, not float"),
        (lambda actions, observation: (actions > 0).any(2).any(1), "as a tensor of floats, not one of torch.bool"),
        (
            lambda actions, observation: torch.cdist(actions, actions[:, :3].detach() + 1).sum((1, 2)),
            "cost '<lambda>' cannot be differentiated twice .* in sampler.best_of it needs no gradient",
        ),
    ],
)
def test_a_cost_that_cannot_steer_is_named(cost, said):
    with pytest.raises(RunError, match=said):
        sample_chunk(steer(POLICY, cost), state(3), noise(3), Sampling())


def test_a_cost_is_called_by_the_name_that_it_was_registered_under():
    register_cost("keep_left", lambda actions, observation: actions.sum((1, 2)) * float("nan"))
    for policy, sampling in (
        (POLICY, Sampling(best_of=BestOf(4, "keep_left"))),
        (steer(POLICY, "keep_left"), Sampling()),
    ):
        with pytest.raises(RunError, match="cost 'keep_left' must be"):
            sample_chunk(policy, state(3), noise(3, draws=sampling.n_noise_draws(policy)), sampling)


def test_what_is_no_cost_is_refused():
    with pytest.raises(InputError, match="steer of plain: 3 is neither a cost nor the name of one"):
        steer(POLICY, 3)


@pytest.mark.parametrize(
    "settings", [{"scale": -1.0}, {"scale": float("inf")}, {"spread": 0.0}, {"scale": "1"}, {"spread": True}]
)
def test_numbers_that_cannot_steer_are_refused(settings):
    with pytest.raises(InputError, match="steer needs a finite scale >= 0 and spread > 0"):
        steer(POLICY, uphill, **settings)


def test_a_cost_is_found_by_name():
    assert load_cost("smoothness") is smoothness
    register_cost("mine", uphill)
    assert load_cost("mine") is uphill


def test_steering_and_critic_from_the_command_line(tiny, tmp_path, capsys):
    ask = ["evaluate", f"policies=[{tiny[0]}]", "episodes=1", "env.max_steps=16", "video=0"]
    run = [*ask, f"run_dir={tmp_path / 'run'}", "steer={tiny-noise: {cost: smoothness, scale: 0.01}}"]
    assert main([*run, "sampler.best_of.n=2", "sampler.best_of.cost=smoothness"]) == 0
    config = json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]
    assert config["fingerprints"]["tiny-noise"].endswith("steered by 0.01 smoothness, spread 0.5")
    assert config["sampler"]["best_of"] == {"n": 2, "cost": "smoothness"}
    capsys.readouterr()
    for key, said in {
        "steer={tiny: {cost: smoothness}}": "steer goes by policy; there is no 'tiny'; choose one of tiny-noise",
        "steer={tiny-noise: {cost: smoothness, sale: 1}}": "sale",
        "steer={tiny-noise: {cost: fast}}": "unknown cost 'fast'",
        "steer={tiny-noise: smoothness}": "give it as in 'steer={tiny-noise: {cost: smoothness, scale: 1}}'",
        "steer={tiny-noise: {cost: 3}}": "steer of tiny-noise: 3 is neither a cost nor the name of one",
        "steer={tiny-noise: {cost: smoothness, scale: x}}": "steer needs a finite scale >= 0",
        "steer=smoothness": "steer=smoothness must go by policy, as in 'steer={tiny-noise: {cost:",
        "action_names=[x,y]": "action_names takes pairs, as in 'action_names={NAME: VALUE}'",
    }.items():
        assert main([*ask, key, f"run_dir={tmp_path / 'none'}"]) == 2
        assert said in capsys.readouterr().err
