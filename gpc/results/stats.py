"""Statistics of a number of episodes fixed beforehand: intervals, paired tests, power."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq

Interval = tuple[float, float]


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval for a proportion (Wilson 1927).

    Args:
        successes: Number of successes.
        n: Number of episodes.
        level: Coverage of the interval.

    Returns:
        Both ends, fractions in [0, 1].
    """
    interval = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return Student's t interval for a mean; of zero width if all values are equal."""
    data = np.asarray(values, np.float64)
    mean = float(data.mean())
    if len(data) < 2 or bool((data == data[0]).all()):
        return mean, mean
    half = float(stats.t.ppf((1 + level) / 2, len(data) - 1) * data.std(ddof=1) / np.sqrt(len(data)))
    return mean - half, mean + half


def score_interval(scores: Sequence[float]) -> Interval:
    """Return the 95 % interval of the mean score of episodes.

    Scores of 0 and 1 alone are successes and have Wilson's interval, others Student's t, which ends at 0 and 1 if all
    scores lie between.
    """
    if set(scores) <= {0, 1}:
        return wilson(int(sum(scores)), len(scores))
    low, high = mean_interval(scores)
    return (max(low, 0.0), min(high, 1.0)) if min(scores) >= 0 and max(scores) <= 1 else (low, high)


def discordant(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[int, int]:
    """Return the number of pairs in which only `a`, and only `b`, succeeds."""
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    return int((first & ~second).sum()), int((~first & second).sum())


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the two-sided p-value of McNemar's exact test on paired successes.

    The test is a binomial test of the pairs that differ.

    Args:
        a: Successes (n,).
        b: Successes of the same seeds (n,).
    """
    only_a, only_b = discordant(a, b)
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b).pvalue)


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, level: float = 0.95) -> Interval:
    """Return an interval of the difference of two success rates from pairs.

    Newcombe 1998, Statistics in Medicine 17, p. 2635, method 10: Wilson's intervals of both rates, combined under the
    correlation of the pairs.

    Args:
        a: Successes (n,).
        b: Successes of the same seeds (n,).
        level: Coverage of the interval.

    Returns:
        Both ends of rate(a) - rate(b), fractions in [-1, 1].
    """
    first, second = np.asarray(a, bool), np.asarray(b, bool)
    n, k, m = len(first), int(first.sum()), int(second.sum())
    (low_a, high_a), (low_b, high_b) = wilson(k, n, level), wilson(m, n, level)
    covariance = int((first & second).sum()) * int((~first & ~second).sum()) - np.multiply(*discordant(a, b))
    if covariance > 0:
        covariance = max(covariance - n / 2, 0)  # continuity
    spread = sqrt(k * (n - k) * m * (n - m))
    phi = float(covariance) / spread if spread else 0.0

    def half(x: float, y: float) -> float:
        return sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return (k - m) / n - half(k / n - low_a, high_b - m / n), (k - m) / n + half(high_a - k / n, m / n - low_b)


def paired_t(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired t test on scores.

    Returns:
        The p-value; 1 if all pairs are equal or there is only one.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    if len(difference) < 2 or not difference.any():
        return 1.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def pairs_needed(difference: float, share: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return the number of pairs that McNemar's test needs for a difference.

    Connor 1987, Biometrics 43, p. 207, with 1 / difference added for the exact test.

    Args:
        difference: Of the success rates, in (0, 1].
        share: Fraction of the pairs with one success only; at least `difference` is used.
        alpha: Level of the two-sided test.
        power: Probability that the test rejects.
    """
    return ceil(_pairs(difference, share, alpha, power))


def resolution(n: int, share: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest difference that McNemar's test finds in `n` pairs.

    The inverse of `pairs_needed`, with its arguments.

    Returns:
        A difference of success rates; 1 if `n` pairs cannot show any.
    """
    if _pairs(1, share, alpha, power) >= n:
        return 1.0
    return float(brentq(lambda difference: _pairs(difference, share, alpha, power) - n, 1e-6, 1))


def _pairs(difference: float, share: float, alpha: float, power: float) -> float:
    share = max(share, difference)
    under_null = float(stats.norm.isf(alpha / 2)) * sqrt(share)
    beyond = float(stats.norm.ppf(power)) * sqrt(share - difference**2)
    return ((under_null + beyond) / difference) ** 2 + 1 / difference
