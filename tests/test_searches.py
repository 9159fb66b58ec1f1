from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm

from gpc.errors import InputError
from gpc.weights.searches import (
    GP_LENGTHSCALE,
    GP_NUGGET_STD,
    GP_STD,
    FromDemonstrations,
    Grid,
    Outcome,
    Racing,
    Random,
    gp_success_rate,
)
from gpc.weights.simplex import one_hot, simplex, to_grid

SEED = 100


@dataclass(frozen=True)
class Parabola:
    """A prior that knows the weight of the first policy that is best."""

    peak: float

    def predicted(self, weights):
        return (weights[0] - self.peak) ** 2

    def best(self):
        return (self.peak, 1 - self.peak)


def play(search, success, rounds=None):
    """Run a search on `success` (candidate, seed) -> bool; returns every round that it asked for."""
    asked = []
    while (due := search.ask()) and len(asked) != rounds:
        asked.append(due)
        search.tell({(c, s): Outcome(success(c, s), 0.0) for c, s in due})
    return asked


def coin(candidate, seed):
    """Paired outcomes: on one seed the better candidates succeed wherever a worse one does, nearly always."""
    draw = np.random.default_rng([7, seed]).random() + 0.2 * np.random.default_rng([candidate, seed]).random()
    return bool(draw < 0.4 + 0.05 * candidate)


def test_the_simplex_has_the_papers_eleven_points_and_sixty_six_for_three():
    assert simplex(2) == [((10 - i) / 10, i / 10) for i in range(11)]
    three = simplex(3)
    assert len(three) == len(set(three)) == 66
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w in three)
    assert len(simplex(4)) == 286


@pytest.mark.parametrize("step", [0.3, 0.0, -0.1, 2.0])
def test_a_step_that_does_not_divide_one_is_refused(step):
    with pytest.raises(InputError, match="does not divide 1"):
        simplex(2, step)


def test_rounding_finds_the_nearest_point_of_the_simplex():
    points = simplex(3, 0.1)
    for weights in np.random.default_rng(0).dirichlet(np.ones(3), 200):
        found = to_grid(weights, 0.1)
        assert found in points
        nearest = min(points, key=lambda p: np.linalg.norm(np.subtract(p, weights)))
        assert np.linalg.norm(np.subtract(found, weights)) == pytest.approx(
            np.linalg.norm(np.subtract(nearest, weights))
        )
    assert all(to_grid(point, 0.1) == point for point in points)


def test_the_grid_asks_everything_once_and_finds_the_best():
    grid = Grid(step=0.5, seed=SEED, episodes=4).start(2)
    asked = grid.ask()
    assert sorted(asked) == [(c, s) for c in range(3) for s in grid.seeds]
    grid.tell({(c, s): Outcome(s - SEED < (1, 3, 3)[c], (0.2, 0.5, 0.6)[c]) for c, s in asked})
    assert grid.ask() == []
    assert grid.best() == 2  # as many successes as candidate 1, a higher score


def test_after_an_interruption_only_the_rest_is_asked():
    grid = Grid(step=0.5, seed=SEED, episodes=4).start(2)
    grid.tell({(1, SEED + 2): Outcome(True, 1.0)})
    assert (1, SEED + 2) not in grid.ask()
    assert len(grid.ask()) == 11


SEARCHES = {
    "racing": lambda budget, prior=None: Racing(step=0.1, seed=SEED, budget=budget).start(2, prior),
    "random": lambda budget, prior=None: Random(step=0.05, seed=SEED, budget=budget, episodes=5).start(2, prior),
}


@pytest.mark.parametrize("prior", [None, Parabola(0.3)])
@pytest.mark.parametrize("budget", [55, 97, 440, 1000])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_budget_is_never_exceeded_and_survivors_share_their_seeds(name, budget, prior):
    search = SEARCHES[name](budget, prior)
    rounds = play(search, coin)
    pairs = [pair for due in rounds for pair in due]
    assert len(pairs) == len(set(pairs)) <= budget
    if name == "racing":
        assert len(pairs) > 0.85 * budget
    assert {seed for _, seed in pairs} <= set(search.seeds)
    seen = {}
    for due in rounds:
        by_candidate = {c: [s for d, s in due if d == c] for c, _ in due}
        assert len({tuple(seeds) for seeds in by_candidate.values()}) == 1
        for c, seeds in by_candidate.items():
            seen.setdefault(c, []).extend(seeds)
    assert all(seeds == list(range(SEED, SEED + len(seeds))) for seeds in seen.values())
    assert len(seen[search.best()]) == max(map(len, seen.values()))  # nobody wins on fewer episodes than a rival had


def test_a_race_halves_the_mixtures_every_round_and_keeps_the_parents():
    rounds = [{c for c, _ in due} for due in play(SEARCHES["racing"](440), coin)]
    assert [len(candidates - {0, 10}) for candidates in rounds] == [9, 5, 3, 2]
    assert all({0, 10} <= candidates for candidates in rounds)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_parent_that_fails_at_first_is_not_lost(name):
    """It fails on the first five seeds and on no other; mixtures succeed on those, and on every second afterwards."""
    search = SEARCHES[name](130)
    play(search, lambda c, s: s >= SEED + 5 if c == 0 else s < SEED + 5 or s % 2 == 0)
    assert search.candidates[search.best()] == one_hot(0, 2)


@pytest.mark.parametrize("budget", [55, 60, 97, 110])
def test_no_mixture_is_dropped_on_fewer_than_five_seeds(budget):
    first = play(SEARCHES["racing"](budget), coin)[0]
    assert len(first) == 55
    assert {s for _, s in first} == set(range(SEED, SEED + 5))


def test_a_budget_below_five_seeds_for_each_weight_is_refused():
    with pytest.raises(
        InputError, match=r"search\.budget=54 .* 11 candidates; give at least 55, or a larger search\.step"
    ):
        SEARCHES["racing"](54)


def test_a_lucky_start_does_not_win_the_race():
    search = SEARCHES["racing"](440)
    play(search, lambda c, s: s < SEED + 9 if c == 0 else s % 2 == 0)  # 9 of the first 9, then nothing
    assert search.best() != 0


def test_best_may_be_asked_at_any_time():
    search = SEARCHES["racing"](440)
    assert 0 <= search.best() < 11
    play(search, lambda c, s: c == 4, rounds=1)
    assert search.best() == 4


def test_a_race_starts_with_the_half_that_demonstrations_predict_and_the_parents():
    search = SEARCHES["racing"](440, Parabola(0.8))
    assert search.candidates[search.best()] == (0.8, 0.2)
    started = {search.candidates[c][0] for c, _ in search.ask()}
    assert started == {1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0}


def test_proposals_begin_with_the_parents_and_the_prior():
    search = SEARCHES["random"](200, Parabola(0.7))
    assert search.candidates == [one_hot(0, 2), one_hot(1, 2), (0.7, 0.3)]
    play(search, coin)
    assert len(search.candidates) == len(set(search.candidates)) == 20  # half of the budget, 5 episodes each
    assert all(w in simplex(2, 0.05) for w in search.candidates)


def test_proposals_end_where_all_is_known():
    search = Random(step=0.5, seed=SEED, budget=400, episodes=5).start(2)
    play(search, coin)
    assert sorted(search.candidates) == sorted(simplex(2, 0.5))


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_that_is_told_its_rows_again_asks_the_same(name):
    first = SEARCHES[name](300)
    rounds = play(first, coin)
    again = SEARCHES[name](300)
    for due in rounds:
        assert again.ask() == due
        again.tell({pair: first.results[pair] for pair in due})
    assert again.ask() == []
    assert (again.best(), again.candidates) == (first.best(), first.candidates)


def test_demos_runs_nothing_and_answers_with_the_prior():
    search = FromDemonstrations(step=0.01).start(2, Parabola(0.377))
    assert search.ask() == []
    assert search.candidates[search.best()] == (0.38, 0.62)
    assert FromDemonstrations(step=0.01).start(2, Parabola(1.0)).candidates == [(1.0, 0.0), (0.0, 1.0)]
    with pytest.raises(InputError, match=r"as in demonstrations=FILE"):
        FromDemonstrations(step=0.01).start(2)


def worlds(count, seeds, rng):
    """Success (11, seeds) with its rate (11,): correlated between weights by seed, as measured rollouts are."""
    weights = np.linspace(0, 1, 11)
    shared = 0.5 * np.exp(-np.abs(weights[:, None] - weights) / 0.3) + 0.1 + 0.4 * np.eye(11)
    root = np.linalg.cholesky(shared)
    for _ in range(count):
        peak, height, width = rng.uniform([0, -0.5, 0.5], [1, 0.8, 2])
        latent = height - width * (weights - peak) ** 2
        yield root @ rng.standard_normal((11, seeds)) < latent[:, None], latent


def regrets(search, budget):
    """Of 300 worlds of paired Bernoulli arms."""
    found = []
    for success, latent in worlds(300, 200, np.random.default_rng(budget)):
        rate, made = norm.cdf(latent), search()
        play(made, lambda c, s: bool(success[c, s]))  # noqa: B023
        found.append(rate.max() - rate[made.best()])
    return np.array(found)


@pytest.mark.parametrize(("budget", "z"), [(110, -1), (220, 2), (440, 2)])
def test_racing_regrets_less_than_the_grid_at_the_same_budget(budget, z):
    """10, 20 and 40 % of 11 x 100 episodes; at 10 % they are level."""
    grid = regrets(lambda: Grid(step=0.1, seed=0, episodes=budget // 11).start(2), budget)
    gain = grid - regrets(lambda: Racing(step=0.1, seed=0, budget=budget).start(2), budget)
    assert gain.mean() > z * gain.std() / np.sqrt(len(gain))


def test_racing_with_two_fifths_of_the_episodes_regrets_no_more_than_the_whole_grid():
    whole = regrets(lambda: Grid(step=0.1, seed=0, episodes=100).start(2), 440)
    gain = whole - regrets(lambda: Racing(step=0.1, seed=0, budget=440).start(2), 440)
    assert gain.mean() > -gain.std() / np.sqrt(len(gain))


def test_smoothing_is_the_posterior_mean_of_a_gaussian_process():
    """Against the information form of the posterior, which inverts the prior instead of the evidence."""
    points, episodes, successes = simplex(2), np.arange(5.0, 16.0), np.arange(11.0) / 2
    first = np.array(points)[:, :1]
    prior = GP_STD**2 * np.exp(-((first - first.T) ** 2) / (2 * GP_LENGTHSCALE**2)) + GP_NUGGET_STD**2 * np.eye(11)
    rate = successes.sum() / episodes.sum()
    precision = np.diag(episodes / (rate * (1 - rate)))
    above = np.linalg.inv(np.linalg.inv(prior) + precision) @ precision @ (successes / episodes - rate)
    np.testing.assert_allclose(gp_success_rate(points, successes, episodes), rate + above, atol=1e-9)


def test_many_episodes_overrule_the_neighbours_and_few_do_not():
    points = simplex(2)
    successes = np.where(np.arange(11) == 4, 1.0, 0.5)
    few, many = (gp_success_rate(points, successes * n, np.full(11, float(n))) for n in (4, 100_000))
    assert many == pytest.approx(successes, abs=0.01)
    assert 0.5 < few[4] < 0.75
    assert few[3] > few[0]  # the neighbour of the lucky one gains


def test_smoothing_guesses_what_was_not_tried_and_knows_a_tie():
    episodes = np.array([10.0, 0.0, 10.0])
    low, middle, high = gp_success_rate(simplex(2, 0.5), np.array([2.0, 0.0, 6.0]), episodes)
    assert low < middle < high
    assert gp_success_rate(simplex(2, 0.5), episodes, episodes) == pytest.approx(1.0)
    assert not gp_success_rate(simplex(2, 0.5), 0 * episodes, 0 * episodes).any()


def test_settings_start_any_number_of_searches():
    settings = Grid(step=0.5, seed=SEED, episodes=1)
    first, second = settings.start(2), settings.start(3)
    first.tell({pair: Outcome(True, 1.0) for pair in first.ask()})
    assert (settings.candidates, len(first.candidates), len(second.candidates)) == ([], 3, 6)
    assert second.results == {}
