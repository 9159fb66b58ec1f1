import numpy as np
import pytest
from scipy import stats

from gpc.results.stats import (
    mcnemar,
    mean_interval,
    paired_difference,
    paired_t,
    pairs_needed,
    resolution,
    score_interval,
    wilson,
)


def test_wilson_against_its_formula():
    z, n, p = 1.959963984540054, 50, 0.3
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = ((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    assert wilson(15, 50) == pytest.approx(expected, abs=1e-12)


def test_wilson_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.binomial(100, 0.3, 4000)
    covered = np.mean([low <= 0.3 <= high for low, high in (wilson(int(k), 100) for k in draws)])
    assert 0.93 < covered < 0.97


def test_mean_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    samples = rng.normal(2.0, 3.0, (2000, 12))
    covered = np.mean([low <= 2.0 <= high for low, high in map(mean_interval, samples)])
    assert 0.935 < covered < 0.965
    assert mean_interval([0.5]) == (0.5, 0.5)


def test_scores_of_zero_and_one_are_successes_and_no_interval_leaves_their_range():
    assert score_interval([1.0, 0.0, 1.0, 1.0]) == wilson(3, 4)
    low, high = score_interval([1.0, 0.99, 1.0, 0.2, 1.0])
    assert (low > 0, high) == (True, 1.0)
    assert score_interval([-3.0, 9.0]) == mean_interval([-3.0, 9.0])


def test_mcnemar_is_the_binomial_test_of_discordant_pairs():
    a = [True] * 9 + [False] * 1 + [True] * 20
    b = [False] * 9 + [True] * 1 + [True] * 20
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10)  # P(X <= 1) of Binomial(10, 1/2), twice
    assert mcnemar(a, a) == 1.0


def paired_outcomes(both, only_a, only_b, neither):
    counts = (both, only_a, only_b, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_the_interval_of_a_paired_difference_is_newcombes_published_one_and_covers():
    assert paired_difference(*paired_outcomes(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = paired_difference(*paired_outcomes(2, 1, 7, 3))
    assert paired_difference(*paired_outcomes(2, 7, 1, 3)) == pytest.approx((-high, -low))
    rng = np.random.default_rng(4)
    cells = rng.multinomial(60, [0.3, 0.25, 0.15, 0.3], 1500)
    covered = np.mean([low <= 0.1 <= high for low, high in (paired_difference(*paired_outcomes(*c)) for c in cells)])
    assert 0.93 < covered < 0.975


def test_paired_t_of_equal_scores_is_one_and_of_a_clear_gain_small():
    scores = np.random.default_rng(2).uniform(size=40)
    assert paired_t(scores, scores) == paired_t([1.0], [0.5]) == 1.0
    assert paired_t(scores + 0.1 + 0.01 * np.arange(40) / 40, scores) < 1e-10


def power_of_mcnemar(n, difference, share):
    """Exact: over the number of pairs that differ, and the winner's share of them."""
    share = max(share, difference)
    k = np.arange(n + 1)
    most = stats.binom.ppf(0.025, k, 0.5) - 1  # the loser's largest count that is significant
    win = (share + difference) / (2 * share)
    found = stats.binom.cdf(most, k, win) + stats.binom.cdf(most, k, 1 - win)
    return float(stats.binom.pmf(k, n, share) @ found)


@pytest.mark.parametrize("n", [20, 50, 200, 1000])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
def test_what_n_pairs_resolve_is_found_with_the_stated_power(n, share):
    difference = resolution(n, share)
    assert 0.78 < power_of_mcnemar(n, difference, share) < 0.88
    assert power_of_mcnemar(n, difference / 2, share) < 0.5
    assert pairs_needed(difference, share) in (n, n + 1)


def test_telling_70_from_65_takes_about_a_thousand_pairs():
    assert 900 < pairs_needed(0.05, 0.3) < 1050
    assert resolution(4, 0.5) == 1.0  # nothing at all
