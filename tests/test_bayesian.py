import numpy as np
import pytest
from scipy import stats

from gpc.weights.bayesian import GaussianProcess, TreeParzen, inverse_stick_breaking, stick_breaking
from gpc.weights.searches import Outcome
from gpc.weights.simplex import simplex

PEAK = np.array([0.15, 0.6, 0.25])


def smooth(weights):
    return 1 - 2 * float(np.sum((np.array(weights) - PEAK) ** 2))


def search(sampler, seed=0, budget=400):
    kind = {"gp": GaussianProcess, "tpe": TreeParzen}[sampler]
    return kind(step=0.05, seed=seed, budget=budget, episodes=5).start(3)


def play(bayesian):
    asked = []
    while due := bayesian.ask():
        asked.append(due)
        bayesian.tell({(c, s): Outcome(False, 1000 * smooth(bayesian.candidates[c])) for c, s in due})
    return asked


def test_the_map_is_one_to_one_and_uniform_on_the_simplex():
    for weights in simplex(4, 0.1):
        assert stick_breaking(inverse_stick_breaking(weights)) == pytest.approx(weights)
    drawn = np.array([stick_breaking(u) for u in np.random.default_rng(0).random((20_000, 3))])
    assert drawn.sum(1) == pytest.approx(np.ones(len(drawn)))
    for weight in drawn.T:  # each weight of Dirichlet(1, 1, 1, 1) is Beta(1, 3)
        assert stats.kstest(weight, stats.beta(1, 3).cdf).pvalue > 0.001


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_it_comes_near_the_best_of_a_smooth_function(sampler):
    found = search(sampler)
    rounds = play(found)
    assert sum(map(len, rounds)) <= 400
    assert found.candidates[:3] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    values = sorted((smooth(w) for w in simplex(3, 0.05)), reverse=True)  # 231 points
    assert smooth(found.candidates[found.best()]) >= values[11]  # among the best 5 %, with 40 proposals


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_same_seed_and_results_give_the_same_proposals(sampler):
    first, again, other = search(sampler, budget=130), search(sampler, budget=130), search(sampler, 1, budget=130)
    rounds = play(first)
    for due in rounds:
        assert again.ask() == again.ask() == due
        again.tell({pair: first.results[pair] for pair in due})
    assert again.candidates == first.candidates
    play(other)
    assert other.candidates != first.candidates
