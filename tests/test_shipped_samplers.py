"""Every sampler as it ships is fit for use: no entry of the menu costs a policy its success."""

from functools import cache

import pytest

import gpc
from gpc.commands.config import load_config, options
from gpc.commands.setup import sampling_of

EPISODES = 16


@cache
def score(sampler):
    policy = gpc.load_policy("pusht-flow")
    sampling = sampling_of(load_config("evaluate", ["policies=[pusht-flow]", f"sampler={sampler}"]))
    env = gpc.EnvSpec("pusht", max_steps=100)
    return gpc.evaluate(policy, env, episodes=EPISODES, seed=500_000, sampler=sampling).score


@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_shipped_sampler_has_most_of_the_default_s_score(sampler):
    assert score(sampler) >= 0.8 * score("dpmpp_2m")
