"""Convex weights: the grid, rounding, one policy alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np

from gpc.errors import InputError

Weights = tuple[float, ...]


def simplex(policies: int, step: float = 0.1) -> list[Weights]:
    """Return all convex weights whose entries are multiples of `step`.

    The order is that of the first weight, from 1 down to 0.
    """
    cuts = _cuts(step)
    grid = []
    for bars in combinations(range(cuts + policies - 1), policies - 1):
        edges = (-1, *bars, cuts + policies - 1)
        grid.append(tuple((b - a - 1) / cuts for a, b in zip(edges, edges[1:], strict=False)))
    return sorted(grid, reverse=True)


def to_grid(weights: Iterable[float], step: float) -> Weights:
    """Round convex weights to the nearest point of the grid, by largest remainder."""
    cuts = _cuts(step)
    exact = np.array(list(weights)) * cuts
    whole = np.floor(exact + 1e-9)
    short = cuts - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
    return tuple(float(w) / cuts for w in whole)


def one_hot(policy: int, policies: int) -> Weights:
    """Return the weights of one policy alone."""
    return tuple(float(i == policy) for i in range(policies))


def _cuts(step: float) -> int:
    cuts = round(1 / step) if step > 0 else 0
    if cuts < 1 or abs(cuts * step - 1) > 1e-9:
        raise InputError(f"search.step={step:g} does not divide 1; use 0.5, 0.25, 0.2, 0.1, 0.05 or 0.02")
    return cuts
