"""Do gpc's statistics keep their promises? Simulated on Bernoulli arms: `python scripts/calibration.py`, half a minute.

Writes docs/results/statistics.md. `--runs` changes the number of simulated experiments.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpc.disk import write_atomically
from gpc.results.sequential import anytime_p, anytime_proportion, log_wealth
from gpc.results.stats import mcnemar, mean_interval, pairs_needed, resolution, wilson

PAGE = Path(__file__).parents[1] / "docs" / "results" / "statistics.md"
PAIRS = 1000  # the longest experiment that is watched after every pair
LOOKS = np.arange(20, PAIRS + 1, 20)
Test = Callable[[int, int], float]  # only a, only b -> p-value
Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int_]


def share_of(a: float, b: float, correlation: float) -> float:
    """Return the share of pairs with one success, of two correlated arms."""
    both = a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b))
    return float(a + b - 2 * both)


def pairs(
    rng: np.random.Generator, difference: float, share: float, runs: int, n: int = PAIRS
) -> tuple[Counts, Counts]:
    """Return the pairs that only a, and only b, has won after each pair, (runs, n)."""
    draw = rng.random((runs, n), np.float32)
    only_a = draw < (share + difference) / 2
    return only_a.cumsum(1, np.int32), ((draw < share) & ~only_a).cumsum(1, np.int32)


def exact(only_a: int, only_b: int) -> float:
    """Return the p-value of McNemar's test, from counts."""
    a = np.arange(only_a + only_b) < only_a
    return mcnemar(a, ~a)


def fewest_wins(test: Test, most: int = PAIRS, alpha: float = 0.05) -> Counts:
    """Return the wins with which a test rejects, of 0 to `most` pairs that differ."""
    fewest, wins = [], 1
    for n in range(most + 1):
        while wins <= n and (2 * wins <= n or test(wins, n - wins) >= alpha):
            wins += 1
        fewest.append(wins)
    return np.array(fewest)


def rejected(only_a: Counts, only_b: Counts, fewest: Counts) -> Flags:
    """Return if a test rejects, by `fewest_wins`."""
    flags: Flags = np.maximum(only_a, only_b) >= fewest[only_a + only_b]
    return flags


def covered(truth: float, draws: Counts, interval: Callable[[int], tuple[float, float]]) -> float:
    """Return the share of draws whose interval contains the truth."""
    ends = {int(k): interval(int(k)) for k in np.unique(draws)}
    return float(np.mean([ends[int(k)][0] <= truth <= ends[int(k)][1] for k in draws]))


def always_covered(truth: float, values: Sequence[int], counts: Counts, alpha: float = 0.05) -> float:
    """Return the share of runs whose confidence sequence always has the truth.

    An interval excludes the means that a wealth of 2 / alpha refutes. counts: (runs, looks, values).
    """
    low, high = values[0], values[-1]
    mirrored = [-value for value in values]
    covered_ = np.ones(len(counts), bool)
    for look in range(counts.shape[1]):
        up = log_wealth(values, counts[:, look], low, truth)
        down = log_wealth(mirrored, counts[:, look], -high, -truth)
        covered_ &= np.maximum(up, down) < np.log(2 / alpha)
    return float(covered_.mean())


def intervals(rng: np.random.Generator, runs: int) -> list[str]:
    lines = [
        "| true rate | episodes | Wilson, % | anytime-valid, % | Student's t of scores, % | anytime-valid, at all looks, % |",
        "|---|---|---|---|---|---|",
    ]
    for p in (0.05, 0.3, 0.5, 0.7, 0.95):
        wins = (rng.random((runs, PAIRS), np.float32) < p).cumsum(1, np.int32)[:, LOOKS - 1]
        always = always_covered(p, (0, 1), np.stack([LOOKS - wins, wins], -1))
        for n in (20, 50, 200):
            draws = rng.binomial(n, p, runs)
            fixed = covered(p, draws, lambda k, n=n: wilson(k, n))
            anytime = covered(p, draws, lambda k, n=n: anytime_proportion(k, n))
            scores = rng.beta(2 * p, 2 * (1 - p), (runs // 10, n))
            student = np.mean([low <= p <= high for low, high in map(mean_interval, scores)])
            last = f"{100 * always:.1f}" if n == 200 else ""
            lines.append(f"| {p} | {n} | {100 * fixed:.1f} | {100 * anytime:.1f} | {100 * student:.1f} | {last} |")
    return lines


def false_alarms(rng: np.random.Generator, runs: int) -> list[str]:
    lines = [
        f"| rate of both | correlation | pairs that differ, % | sequential, looked at after each of {PAIRS} pairs, % "
        "| McNemar p < .05 at any look, every 20 pairs, % | McNemar, once at the end, % "
        "| interval of the difference, at all looks, % |",
        "|---|---|---|---|---|---|---|",
    ]
    sequential, naive = fewest_wins(anytime_p), fewest_wins(exact)
    for p in (0.1, 0.5, 0.7, 0.95):
        for correlation in (0.0, 0.3, 0.8):
            share = share_of(p, p, correlation)
            a, b = pairs(rng, 0, share, runs)
            at = a[:, LOOKS - 1], b[:, LOOKS - 1]
            outcomes = np.stack([at[1], LOOKS - at[0] - at[1], at[0]], -1)
            figures = (
                share,
                rejected(a, b, sequential).any(1).mean(),
                rejected(*at, naive).any(1).mean(),
                rejected(a[:, -1], b[:, -1], naive).mean(),
                always_covered(0, (-1, 0, 1), outcomes),
            )
            lines.append(f"| {p} | {correlation} | " + " | ".join(f"{100 * x:.1f}" for x in figures) + " |")
    return lines


def sizes(rng: np.random.Generator, runs: int) -> list[str]:
    lines = [
        "| rates | correlation | pairs of a test of a fixed size | its power there, % | sequential: pairs on average "
        "| median | known by the fixed size, % | by twice as many, % | wrong, % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for a, b, correlation in (
        (0.9, 0.5, 0.0), (0.7, 0.5, 0.1), (0.7, 0.6, 0.1), (0.95, 0.9, 0.1), (0.7, 0.65, 0.1), (0.7, 0.65, 0.3),
    ):  # fmt: skip
        share = share_of(a, b, correlation)
        n = pairs_needed(a - b, share)
        first, second = pairs(rng, a - b, share, runs // 5, 3 * n)
        sequential, once = fewest_wins(anytime_p, 3 * n), fewest_wins(exact, n)
        stop = rejected(first, second, sequential)
        when = np.where(stop.any(1), stop.argmax(1) + 1, 3 * n)
        wrong = stop.any(1) & (first < second)[np.arange(len(when)), when - 1]
        power = (rejected(first[:, n - 1], second[:, n - 1], once)).mean()
        known = [100 * stop[:, : k * n].any(1).mean() for k in (1, 2)]
        lines.append(
            f"| {a} and {b} | {correlation} | {n} | {100 * power:.0f} | {when.mean():.0f} | {np.median(when):.0f} "
            f"| {known[0]:.0f} | {known[1]:.0f} | {100 * wrong.mean():.1f} |"
        )
    return lines


def resolutions() -> list[str]:
    counts = (20, 50, 100, 200, 500, 1000, 2000)
    lines = ["| pairs that differ, % | " + " | ".join(f"{n} pairs" for n in counts) + " |", "|---" * 8 + "|"]
    for share in (0.1, 0.2, 0.3, 0.5):
        cells = " | ".join(f"{100 * resolution(n, share):.1f}" for n in counts)
        lines.append(f"| {100 * share:.0f} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    rng = np.random.default_rng(0)
    text = f"""# Calibration of the statistics

Written by `scripts/calibration.py`: {runs:,} simulated experiments for each line ({runs // 10:,} for Student's t, {runs // 5:,}
for the sizes), seed 0. What the numbers mean is in [statistics](../statistics.md). A share of 5 % of 10,000 runs is known to 0.2
points (one standard error).

## Intervals: how often they hold the truth

Promised: 95 %. Wilson's interval promises it on average over rates, for a number of episodes that was fixed beforehand. The
anytime-valid one promises at least that at all looks at once (after every 20 of {PAIRS} episodes), and is wider for it. The
scores are beta(2 p, 2 - 2 p), a U shape for extreme rates, as scores near success have it.

{chr(10).join(intervals(rng, runs))}

## Two equal arms: how often a difference is claimed

Promised: at most 5 %. McNemar's test after every 20 pairs, with a stop at p < .05, exceeds it.

{chr(10).join(false_alarms(rng, runs))}

## Two different arms: how many pairs it takes

The sequential test is stopped at three times the fixed size, which the average contains. A test of a fixed size must know
the difference beforehand to choose its size; the sequential one need not.

{chr(10).join(sizes(rng, runs))}

## What a number of pairs can tell: the smallest difference, in points of success

80 % power at the 5 % level (McNemar), by the share of pairs with one success only.

{chr(10).join(resolutions())}
"""
    write_atomically(PAGE, text)


if __name__ == "__main__":
    main()
