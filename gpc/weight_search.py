"""Weight searches: ask for weights to try, be told how they did.

A search knows nothing of simulators. `ask` returns the next round of (candidate, seed) pairs to roll out, an empty round
when it is done; `tell` takes their results; `best` may be asked at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol

from gpc.errors import InputError

Weights = tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """What one episode was worth."""

    success: bool
    score: float


class Search(Protocol):
    """Ask / tell over candidate weights; candidates are numbered in the order of `candidates`."""

    candidates: list[Weights]

    def ask(self) -> list[tuple[int, int]]:
        """The next (candidate, seed) pairs to roll out; empty when the search is over."""

    def tell(self, results: Mapping[tuple[int, int], Outcome]) -> None:
        """The outcomes of everything that was asked."""

    def best(self) -> int:
        """The candidate that looks best so far."""


def simplex(policies: int, step: float = 0.1) -> list[Weights]:
    """All convex weights whose entries are multiples of `step`: 11 for two policies at 0.1, 66 for three.

    The order is that of the first weight, from 1 down to 0.
    """
    parts = round(1 / step) if step > 0 else 0
    if parts < 1 or abs(parts * step - 1) > 1e-9:
        raise InputError(f"search.step={step:g} does not divide 1; use 0.5, 0.25, 0.2, 0.1, 0.05 or 0.02")
    grid = []
    for bars in combinations(range(parts + policies - 1), policies - 1):
        edges = (-1, *bars, parts + policies - 1)
        grid.append(tuple((b - a - 1) / parts for a, b in zip(edges, edges[1:], strict=False)))
    return sorted(grid, reverse=True)


@dataclass
class Grid:
    """Every point of the simplex on the same seeds, the paper's search (arXiv 2510.01068, section 4)."""

    policies: int
    seeds: Sequence[int]
    step: float = 0.1
    candidates: list[Weights] = field(init=False)
    results: dict[tuple[int, int], Outcome] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.candidates = simplex(self.policies, self.step)

    def ask(self) -> list[tuple[int, int]]:
        """Everything at once."""
        pairs = [(c, seed) for c in range(len(self.candidates)) for seed in self.seeds]
        return [pair for pair in pairs if pair not in self.results]

    def tell(self, results: Mapping[tuple[int, int], Outcome]) -> None:
        """See `Search`."""
        self.results.update(results)

    def best(self) -> int:
        """The most successes, then the highest score, then the first."""
        return max(range(len(self.candidates)), key=lambda c: (*self._worth(c), -c))

    def _worth(self, candidate: int) -> tuple[int, float]:
        told = [self.results[candidate, seed] for seed in self.seeds if (candidate, seed) in self.results]
        return sum(o.success for o in told), sum(o.score for o in told)
