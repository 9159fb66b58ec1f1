import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from models import ACTIONS, WIDE, FixedPolicy
from scipy import optimize, stats
from train import windows

from gpc.composition.composed import compose
from gpc.demonstrations import Demonstrations
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.score.noise import NoiseLevels
from gpc.weights.denoising_error import least_error_weights, measure

TRUTH = 0.3  # every demonstrated action, normalised


@dataclass(frozen=True)
class Off:
    """Misses the demonstrated action by a constant, and keeps a part of the noise."""

    bias: float
    part: float = 0.0

    def __call__(self, x, sigma):
        return TRUTH + self.bias + self.part * (x - TRUTH)


def policy(name, bias, part=0.0, actions=ACTIONS, levels=WIDE):
    return FixedPolicy(Off(bias, part), actions, levels, name=name)


def demonstrations(lengths=(30, 20), dim=2):
    steps = sum(lengths)
    return Demonstrations({"state": np.zeros((steps, 3))}, np.full((steps, dim), TRUTH), np.cumsum(lengths))


def measured(*policies, data=None):
    return measure(compose(policies, [1 / len(policies)] * len(policies)), Sampling(), data or demonstrations())


def random_gram(rng, size):
    errors = rng.standard_normal((size, 6)) + rng.standard_normal(6)
    return errors @ errors.T


def test_two_policies_have_the_closed_form():
    rng = np.random.default_rng(0)
    for _ in range(200):
        gram = random_gram(rng, 2) * 10 ** rng.uniform(-6, 3)
        (a, c), (_, b) = gram
        weight = np.clip((b - c) / (a + b - 2 * c), 0, 1)
        assert least_error_weights(gram) == pytest.approx((weight, 1 - weight), abs=1e-9)


def test_four_policies_agree_with_a_general_solver():
    rng = np.random.default_rng(1)
    for _ in range(20):
        gram = random_gram(rng, 4)
        sum_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1}
        other = optimize.minimize(
            lambda w, g=gram: w @ g @ w,
            np.full(4, 0.25),
            method="SLSQP",
            bounds=[(0, 1)] * 4,
            constraints=sum_to_one,
            tol=1e-12,
        )
        weights = np.array(least_error_weights(gram))
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)
        assert weights @ gram @ weights <= other.fun + 1e-9


def test_policies_without_any_error_share():
    assert sum(least_error_weights(np.zeros((3, 3)))) == pytest.approx(1)


def test_opposite_biases_cancel():
    found = measured(policy("high", 0.1), policy("low", -0.3))
    assert found.gram == pytest.approx(np.broadcast_to([[0.01, -0.03], [-0.03, 0.09]], found.gram.shape))
    assert found.correlation[:, 0, 1] == pytest.approx(-1)
    assert found.best() == pytest.approx((0.75, 0.25))
    assert found.predicted((0.75, 0.25)) == pytest.approx(0, abs=1e-6)
    assert [found.predicted(w) for w in ((1, 0), (0, 1), (0.5, 0.5))] == pytest.approx([1, 3, 1])


def test_the_noise_is_shared_and_standard_normal():
    found = measured(policy("a", 0.0, 1.0), policy("b", 0.0, 0.5))
    assert found.correlation[:, 0, 1] == pytest.approx(1)
    size = found.gram[:, 0, 0] / found.sigmas**2  # mean of windows * 16 * 2 squared normals
    assert size == pytest.approx(1, abs=5 * np.sqrt(2 / (found.windows * 32)))
    again = measured(policy("a", 0.0, 1.0), policy("b", 0.0, 0.5))
    assert (again.gram == found.gram).all()


def test_each_level_has_its_own_best_weights():
    coarse, fine = policy("coarse", 0.3), policy("fine", -0.01, 0.9)  # a bias; an error that grows with sigma
    found = measured(coarse, fine)
    first = np.array(found.best_per_level)[:, 0]
    assert first[0] > 0.95
    assert first[-1] < 0.05
    assert (np.diff(first) <= 1e-9).all()
    assert found.sigmas == pytest.approx(np.geomspace(found.sigmas[0], found.sigmas[-1], len(found.sigmas)))


def test_a_discrete_policy_is_asked_at_its_trained_levels():
    levels = NoiseLevels(0.02, 20.0, tuple(np.geomspace(0.02, 20, 40).tolist()))
    found = measured(policy("a", 0.1, levels=levels), policy("b", 0.2))
    assert set(found.sigmas) <= set(levels.trained)
    assert len(found.sigmas) == 10


def test_only_steps_that_all_chunks_have_count():
    short = replace(ACTIONS, horizon=8, start=4)
    found = measured(policy("long", 0.1), policy("short", -0.1, actions=short))
    assert found.gram == pytest.approx(np.broadcast_to([[0.01, -0.01], [-0.01, 0.01]], found.gram.shape))


def test_demonstrations_of_other_actions_are_refused():
    with pytest.raises(InputError, match=r"act in \(3,\) dimensions"):
        measured(policy("a", 0.1), policy("b", 0.2), data=demonstrations(dim=3))


def test_windows_are_those_of_the_training():
    data = demonstrations((30, 5, 20))
    for n_obs_steps, horizon in ((1, 16), (2, 16), (2, 8)):
        for mine, theirs in zip(
            data.windows(n_obs_steps, 1 - n_obs_steps, horizon),
            windows(data.episode_ends, [0, 1, 2], horizon, n_obs_steps),
            strict=True,
        ):
            assert torch.equal(torch.from_numpy(mine), theirs)


def test_what_a_summary_says():
    found = measured(policy("high", 0.1), policy("low", -0.3))
    grid = [(1.0, 0.0), (0.7, 0.3), (0.5, 0.5), (0.0, 1.0)]
    success = {w: s for w, s in zip(grid, (50.0, 80.0, 60.0, 10.0), strict=True)}
    told = found.explain(["high", "low"], grid, success)
    predicted = [p["error"] for p in told["predicted"]]
    assert predicted == pytest.approx([1, 0.2, 1, 3])
    assert told["spearman"] == pytest.approx(stats.spearmanr(predicted, list(success.values())).statistic)
    assert told["pc_gain"] == pytest.approx(100)
    assert told["best_parent"] == "high"
    assert told["rms"] == {"high": pytest.approx([0.1] * 10), "low": pytest.approx([0.3] * 10)}
    assert "[0.75, 0.25]" in told["verdict"]
    assert json.loads(json.dumps(told)) == told
    assert found.explain(["high", "low"], grid, {})["spearman"] is None
