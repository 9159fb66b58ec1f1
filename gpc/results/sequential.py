"""Anytime-valid statistics, which hold if they are computed after every episode and decide when to stop.

A gambler bets at fair odds that a mean exceeds m. If it does not, the expected wealth never grows, and the probability that
it ever reaches 1 / alpha is at most alpha (Ville's inequality). Every m at which a gambler would have reached that wealth is
refuted. The rest is a confidence sequence: an interval that holds at all times at once (Waudby-Smith &
Ramdas 2020, arXiv 2010.09686, section 4). The wealth here is the mean over a fixed mixture of bets (Robbins 1970; Orabona
& Jun 2021, arXiv 2110.14099). For paired successes and m = 0 it is the beta-binomial mixture on the pairs that differ: a
sequential version of McNemar's test, for the question of arXiv 2503.10966.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import logsumexp

from gpc.results.stats import Interval

# The fraction u of the largest bet that is allowed, with weights as the density 1 - u^2: beta(2, 2) on the winner's share
# of the pairs that differ. A finite mixture is a wealth in its own right, so nothing is approximated.
BETS = (np.arange(128) + 0.5) / 128
LOG_SHARES = np.log((1 - BETS**2) / (1 - BETS**2).sum())


def log_wealth(values: Sequence[float], counts: npt.ArrayLike, low: float, mean: float) -> npt.NDArray[np.float64]:
    """Return the log of the wealth of a bet that a mean exceeds `mean`.

    The wealth falls as `mean` rises; it is a supermartingale if the true mean is at most `mean`.

    Args:
        values: Possible outcomes (values,).
        counts: Number of times each was observed (..., values).
        low: Lower bound of the outcomes.
        mean: Hypothesis.

    Returns:
        Array (...).
    """
    gains = np.log1p(BETS * (np.asarray(values, np.float64)[:, None] - mean) / (mean - low))
    wealth: npt.NDArray[np.float64] = logsumexp(LOG_SHARES + np.asarray(counts, np.float64) @ gains, axis=-1)
    return wealth


def lower_bound(values: Sequence[float], counts: Sequence[int], low: float, alpha: float) -> float:
    """Return a lower bound of a mean that holds at all times at once.

    Args:
        values: Possible outcomes (values,).
        counts: Number of times each was observed (values,).
        low: Lower bound of the outcomes.
        alpha: Probability that the bound ever fails.
    """
    n, total = sum(counts), float(np.dot(values, counts))
    if n == 0 or total / n <= low:
        return low
    middle, edge = total / n, low + 1e-9
    if log_wealth(values, counts, low, edge) < np.log(1 / alpha):
        return low
    return float(brentq(lambda mean: log_wealth(values, counts, low, mean) + np.log(alpha), edge, middle))


def anytime_proportion(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return the confidence sequence of a proportion, fractions in [0, 1].

    Each end fails with a probability of at most (1 - level) / 2.
    """
    alpha, failures = (1 - level) / 2, n - successes
    return lower_bound((0, 1), (failures, successes), 0, alpha), -lower_bound((-1, 0), (successes, failures), -1, alpha)


def anytime_difference(only_a: int, only_b: int, n: int, level: float = 0.95) -> Interval:
    """Return the confidence sequence of the difference of two success rates.

    It excludes zero exactly if `anytime_p` is below 1 - level.

    Args:
        only_a: Pairs in which only the first succeeded.
        only_b: Pairs in which only the second succeeded.
        n: All pairs.
        level: Coverage.

    Returns:
        Both ends, fractions in [-1, 1].
    """
    values, counts, alpha = (-1, 0, 1), (only_b, n - only_a - only_b, only_a), (1 - level) / 2
    return lower_bound(values, counts, -1, alpha), -lower_bound(values, counts[::-1], -1, alpha)


def anytime_p(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of equal success rates, valid at any time.

    If it is below alpha, the side with more single successes is the better one; the probability that the worse one is ever
    named is at most alpha / 2.

    Args:
        only_a: Pairs in which only the first succeeded.
        only_b: Pairs in which only the second succeeded.
    """
    best = log_wealth((-1, 1), [(only_b, only_a), (only_a, only_b)], -1, 0).max()
    return float(min(1.0, 2 * np.exp(-best)))
