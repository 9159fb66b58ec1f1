"""Anytime-valid statistics against exact sums, closed forms and simulated experiments that are stopped at will."""

from functools import cache
from itertools import product

import numpy as np
import pytest
from calibration import always_covered, exact, fewest_wins, pairs, rejected
from scipy import integrate, special, stats

from gpc.results.sequential import anytime_difference, anytime_p, anytime_proportion, log_wealth

RUNS = 2000
ERROR = 3 * np.sqrt(0.05 * 0.95 / RUNS)  # three standard errors of a share of 5 %


@pytest.mark.parametrize(
    ("values", "chances"), [((0, 1), (0.3, 0.7)), ((-1, 1), (0.5, 0.5)), ((-1, 0, 1), (0.2, 0.5, 0.3))]
)
def test_the_expected_wealth_at_the_true_mean_is_one_and_less_above_it(values, chances):
    n, low, mean = 12, values[0], float(np.dot(values, chances))
    counts = [c for c in product(range(n + 1), repeat=len(values)) if sum(c) == n]
    likely = stats.multinomial.pmf(counts, n, chances)
    assert likely @ np.exp(log_wealth(values, counts, low, mean)) == pytest.approx(1, abs=1e-12)
    assert likely @ np.exp(log_wealth(values, counts, low, mean + 0.1)) < 0.9
    assert likely @ np.exp(log_wealth(values, counts, low, mean - 0.1)) > 1.2


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (8, 2), (40, 22), (150, 90), (5, 12)])
def test_the_wealth_of_pairs_is_the_beta_binomial_mixture(wins, losses):
    """Robbins's mixture: the winner's share under beta(2, 2), cut to the half above 1/2, against 1/2."""
    a, b = 2 + wins, 2 + losses
    log = special.betaln(a, b) - special.betaln(2, 2) + np.log(2 * special.betainc(b, a, 0.5))
    expected = log + (wins + losses) * np.log(2)
    assert log_wealth((-1, 1), (losses, wins), -1, 0) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("wins", "losses", "mean"), [(30, 20, 0.4), (5, 2, 0.1), (3, 40, 0.2)])
def test_the_wealth_of_a_proportion_is_its_integral(wins, losses, mean):
    def bet(u):
        return 1.5 * (1 - u**2) * (1 + u * (1 - mean) / mean) ** wins * (1 - u) ** losses

    assert log_wealth((0, 1), (losses, wins), 0, mean) == pytest.approx(np.log(integrate.quad(bet, 0, 1)[0]), abs=5e-3)


def test_intervals_are_what_no_wealth_refutes():
    ends = anytime_proportion(23, 30)
    assert log_wealth((0, 1), (7, 23), 0, ends[0]) == pytest.approx(np.log(40), abs=1e-6)
    assert log_wealth((-1, 0), (23, 7), -1, -ends[1]) == pytest.approx(np.log(40), abs=1e-6)
    values, counts = (-1, 0, 1), (30, 90, 55)
    low, high = anytime_difference(55, 30, 175)
    assert log_wealth(values, counts, -1, low) == pytest.approx(np.log(40), abs=1e-6)
    assert log_wealth(values, counts[::-1], -1, -high) == pytest.approx(np.log(40), abs=1e-6)
    assert low < 25 / 175 < high
    assert anytime_difference(30, 55, 175) == pytest.approx((-high, -low), abs=1e-9)
    assert anytime_proportion(7, 30)[0] == pytest.approx(1 - anytime_proportion(23, 30)[1], abs=1e-9)


def test_an_interval_narrows_and_ends_where_rates_end():
    assert anytime_proportion(0, 0) == (0, 1)
    assert anytime_difference(0, 0, 0) == (-1, 1)
    assert anytime_proportion(0, 50)[0] == 0
    assert anytime_proportion(50, 50)[1] == 1
    widths = [high - low for low, high in (anytime_proportion(n // 2, n) for n in (10, 100, 1000, 10000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.04


def test_the_interval_of_the_difference_leaves_out_zero_exactly_where_the_test_rejects():
    decided = set()
    for only_a, only_b, ties in product(range(0, 24, 3), range(0, 24, 3), (0, 40)):
        low, high = anytime_difference(only_a, only_b, only_a + only_b + ties)
        assert (anytime_p(only_a, only_b) < 0.05) == (low > 0 or high < 0)
        decided.add(low > 0 or high < 0)
    assert decided == {True, False}


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_stopping_at_will_keeps_the_level_that_mcnemar_would_break(share):
    only_a, only_b = pairs(np.random.default_rng(3), 0, share, RUNS, 600)
    always = rejected(only_a, only_b, fewest_wins(anytime_p, 600)).any(1).mean()
    naive = rejected(only_a[:, 19::20], only_b[:, 19::20], fewest_wins(exact, 600)).any(1).mean()
    assert 0.005 < always < 0.05 + ERROR
    assert naive > 0.05 + 4 * ERROR


def test_a_real_difference_is_found_and_its_direction_is_right():
    only_a, only_b = pairs(np.random.default_rng(4), 0.2, 0.4, RUNS, 300)
    stop = rejected(only_a, only_b, fewest_wins(anytime_p, 300))
    first = (np.arange(RUNS), stop.argmax(1))
    assert stop.any(1).mean() > 0.97
    assert (only_a[first] > only_b[first])[stop.any(1)].mean() > 0.995
    assert stop.argmax(1).mean() < 120  # a test of a fixed size needs 80 and must know the difference


def test_a_difference_is_covered_at_all_looks_where_a_fixed_interval_fails():
    rng, truth, looks = np.random.default_rng(5), 0.1, np.arange(20, 601, 20)
    a, b = (counts[:, looks - 1] for counts in pairs(rng, truth, 0.4, RUNS, 600))
    assert always_covered(truth, (-1, 0, 1), np.stack([b, looks - a - b, a], -1)) > 0.95 - ERROR
    mean, square = (a - b) / looks, (a + b) / looks
    half = 1.96 * np.sqrt((square - mean**2) / looks)
    assert (np.abs(mean - truth) < half).all(1).mean() < 0.85


def test_a_proportion_is_covered_at_all_looks():
    interval = cache(anytime_proportion)
    looks = (5, 10, 20, 40, 80, 160)
    wins = (np.random.default_rng(6).random((RUNS, 160)) < 0.8).cumsum(1)
    kept = [all(low <= 0.8 <= high for low, high in (interval(int(w[n - 1]), n) for n in looks)) for w in wins]
    assert 0.95 - ERROR < np.mean(kept) < 1
