"""Every sampler as it ships is fit for use: no entry of the menu costs a policy its success."""

from functools import cache

import pytest

import gpc
from gpc.commands.config import options

EPISODES = 16


@cache
def score(sampler):
    policy = gpc.load_policy("pusht-flow")
    keys = [f"sampler={sampler}", "seed=500000", "env.max_steps=100"]
    return gpc.evaluate(policy, "pusht", episodes=EPISODES, overrides=keys).score


@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_shipped_sampler_has_most_of_the_default_s_score(sampler):
    assert score(sampler) >= 0.8 * score("dpmpp_2m")
