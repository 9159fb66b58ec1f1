"""`check_policy` passes what keeps the contract and names what each broken policy breaks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import FixedPolicy, Gaussian, RandomNetwork
from test_denoise import COSINE, ideal

import gpc
from gpc.commands.simulators import env_named
from gpc.policy.load import bundled_cards
from gpc.rollout.env import make_env
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import LinearFlow, NoiseLevels
from gpc.testing.policy import check_policy

GOOD = FixedPolicy(Gaussian())


@pytest.mark.parametrize("name", bundled_cards())
def test_the_bundled_policies_keep_the_contract(name):
    policy = gpc.load_policy(name)
    check_policy(policy, observation=seen(name.partition("-")[0], policy))


def seen(env, policy):
    """What the policy sees at the beginning of four episodes."""
    spec = policy.observations
    simulator = env_named(env)
    frames = [make_env(simulator, tuple(spec.shapes)).reset(seed=seed)[0] for seed in range(4)]
    stacked = {key: np.stack([[frame[key]] * spec.n_obs_steps for frame in frames]) for key in spec.shapes}
    return spec.read(stacked)


def test_compositions_and_untrained_networks_keep_it_too(parents):
    check_policy(GOOD)
    check_policy(FixedPolicy(ideal("noise"), levels=COSINE.levels))
    for parent in parents:
        check_policy(parent, trained=False)
    check_policy(gpc.compose(parents, [0.5, 0.5]), trained=False)


def test_a_policy_is_checked_where_it_computes(parents, monkeypatch):
    check_policy(parents[1], trained=False, device=gpc.Device("cpu", dtype="bfloat16"))
    monkeypatch.setattr("gpc.testing.policy.place", lambda policy, device: replace(policy, prediction="noise"))
    with pytest.raises(AssertionError, match="on its device it denoises otherwise than on the CPU"):
        check_policy(parents[1], trained=False)


def in_place(x, sigma):
    return x.mul_(0.5)


def random_each_time(x, sigma):
    return torch.randn_like(x)


def mixing(x, sigma):
    return x - x.mean(0, keepdim=True)


def biased(x, sigma):
    return Gaussian()(x, sigma) + (sigma < 0.1).reshape(-1, 1, 1)


def in_training(layer):
    """The layer as training leaves it, in a denoiser."""
    return FixedPolicy(lambda x, sigma: layer(Gaussian()(x, sigma).float()).to(x))


class Encoding(FixedPolicy):
    """A policy whose `denoiser` makes of an encoded observation (batch, 1, 1) the network and its condition."""

    def condition(self, observation):
        seen = observation["state"].flatten(1)[:, :1, None].sigmoid()
        network, condition = self.denoiser(seen)
        return NetworkDenoiser(network, LinearFlow(), "sample", condition=condition)


FLIPPED = FixedPolicy(
    NetworkDenoiser(ideal("velocity").network, LinearFlow(), "reverse_velocity", torch.float64),
    levels=LinearFlow().levels,
)
BROKEN = {
    "changes its input": (FixedPolicy(in_place), r"changes its arguments: \['x'\]"),
    "another shape": (FixedPolicy(lambda x, sigma: x[:, 1:]), r"denoised has shape \(4, 15, 2\), x \(4, 16, 2\)"),
    "float32": (FixedPolicy(lambda x, sigma: x.float()), "denoised is torch.float32"),
    "not finite": (FixedPolicy(lambda x, sigma: x / 0), "denoised is not finite at sigma=40"),
    "random": (FixedPolicy(random_each_time), "the same call gives another result"),
    "rows that see each other": (FixedPolicy(mixing), "depends on the other rows of its batch"),
    "dropout": (in_training(torch.nn.Dropout(0.02)), r"the same call gives another result .* call its eval\(\)"),
    "batch normalisation": (in_training(torch.nn.BatchNorm1d(16)), r"the other rows of its batch .* call its eval\(\)"),
    "noise that stays": (FixedPolicy(lambda x, sigma: x), "the noise is not removed"),
    "a velocity of the wrong sign": (FLIPPED, "further than the noise itself; look at .* the sign"),
    "a bias as sigma goes to 0": (
        FixedPolicy(biased),
        "further than the noise itself",
    ),
    "a network that sees beside its condition": (
        Encoding(lambda seen: (lambda x, t, condition: seen + condition, (seen,))),
        r"depends on the observation beside its condition; hand over all of it as condition=\(...\)",
    ),
    "a condition without rows": (
        Encoding(lambda seen: (lambda x, t, condition: condition["mean"].expand_as(x), ({"mean": seen.mean()},))),
        r"the condition has a part of shape \(\); it has tensors with a row for each observation, here 4",
    ),
    "a condition of other things": (
        Encoding(lambda seen: (lambda x, t, condition, name: condition + x, (seen, "state"))),
        "the condition has a part of type str",
    ),
    "no name": (replace(GOOD, name=""), "name and fingerprint must not be empty"),
    "levels beside the range": (replace(GOOD, levels=NoiseLevels(0.1, 3.0, (0.1, 2.0))), "ends at 0.1, 2.0"),
    "no spec": (replace(GOOD, actions=None), "actions is a NoneType, not a ActionSpec"),
}


@pytest.mark.parametrize(("policy", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_promise_is_named(policy, message):
    with pytest.raises(AssertionError, match=message):
        check_policy(policy)


def test_an_untrained_network_is_told_from_a_trained_one():
    policy = FixedPolicy(NetworkDenoiser(RandomNetwork(0), COSINE, "noise", torch.float64), levels=COSINE.levels)
    check_policy(policy, trained=False)
    with pytest.raises(AssertionError, match="the noise is not removed"):
        check_policy(policy)
