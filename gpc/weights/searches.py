"""Weight searches: ask for weights to try, be told how they did.

A search knows nothing of simulators. `ask` returns the next round of (candidate, seed) pairs to roll out, an empty round
when it is done; `tell` takes their results; `best` may be asked at any time. What is asked depends on the settings and on
what was told alone, so that a search which is told its recorded results again goes on where it stopped.

Seeds are always used from the first one on: any two candidates have met the same initial states and the same noise in
the episodes that both have (common random numbers), and only candidates with the same seeds compete.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpc.errors import InputError
from gpc.weights.simplex import Weights, one_hot, rounded, simplex

Array = npt.NDArray[np.float64]
Pair = tuple[int, int]
"""(candidate, seed)."""

LENGTH, SPREAD, RUGGED = 0.3, 0.15, 0.05  # of `smoothed`; docs/search.md says how little they matter
REPEATS = 20  # proposals in a row that are known already, after which nothing new is expected


@dataclass(frozen=True)
class Outcome:
    """What one episode was worth."""

    success: bool
    score: float


class Prior(Protocol):
    """What is known before any rollout."""

    def predicted(self, weights: Weights) -> float:
        """Predicted error; lower is better."""

    def best(self) -> Weights:
        """The convex weights with the lowest."""


class Search(Protocol):
    """Ask / tell over candidate weights; candidates are numbered in the order of `candidates`, which may grow.

    Each policy alone is a candidate from the start.
    """

    candidates: list[Weights]

    @property
    def seeds(self) -> range:
        """Every seed that may be asked for."""

    def ask(self) -> list[Pair]:
        """The next (candidate, seed) pairs to roll out; empty when the search is over."""

    def tell(self, results: Mapping[Pair, Outcome]) -> None:
        """The outcomes of everything that was asked."""

    def best(self) -> int:
        """The candidate that looks best so far."""


def smoothed(weights: Sequence[Weights], successes: Array, episodes: Array) -> Array:
    """The rate of success (n,) under each of n weights, where neighbours lend each other their episodes.

    The posterior mean of a Gaussian process (Rasmussen & Williams 2006, eq. 2.23) about the overall rate: a smooth part of
    covariance SPREAD^2 exp(-d^2 / (2 LENGTH^2)), d being the Euclidean distance / sqrt(2), so that two weights a step of the
    grid apart are that step apart; a part of RUGGED^2 that is each point's own, so that many episodes overrule all neighbours; and
    binomial noise. `successes`, `episodes` (n,); a point may have none.
    """
    total = episodes.sum()
    if total == 0:
        return np.zeros(len(weights))
    rate = successes.sum() / total
    seen = episodes > 0
    points = np.array(weights)
    squares = ((points[:, None] - points[None, seen]) ** 2).sum(-1) / 2
    covariance = SPREAD**2 * np.exp(-squares / (2 * LENGTH**2)) + RUGGED**2 * np.eye(len(points))[:, seen]
    noise = max(rate * (1 - rate), 1 / total) / episodes[seen]
    surprise = successes[seen] / episodes[seen] - rate
    posterior: Array = rate + covariance @ np.linalg.solve(covariance[seen] + np.diag(noise), surprise)
    return posterior


@dataclass(kw_only=True)
class Told:
    """What all searches share: candidates, and the results by (candidate, seed). `prior` is for those that can use one."""

    policies: int
    step: float
    seed: int = 0
    prior: Prior | None = None
    candidates: list[Weights] = field(init=False)
    results: dict[Pair, Outcome] = field(init=False, default_factory=dict)

    @property
    def parents(self) -> list[Weights]:
        """Each policy alone."""
        return [one_hot(i, self.policies) for i in range(self.policies)]

    def tell(self, results: Mapping[Pair, Outcome]) -> None:
        """See `Search`."""
        self.results.update(results)

    def missing(self, candidates: Iterable[int], begin: int, end: int) -> list[Pair]:
        """The pairs of these candidates and the seeds from the `begin`-th to before the `end`-th that have no result yet."""
        pairs = [(c, self.seed + i) for c in candidates for i in range(begin, end)]
        return [pair for pair in pairs if pair not in self.results]

    def counts(self, seeds: int) -> Array:
        """Episodes, successes and the sum of scores (candidates, 3) on the first so many seeds."""
        found = np.zeros((len(self.candidates), 3))
        for (candidate, seed), outcome in self.results.items():
            if seed < self.seed + seeds:
                found[candidate] += 1, outcome.success, outcome.score
        return found

    def ranked(self, candidates: Iterable[int], seeds: int) -> list[int]:
        """Best first on the first so many seeds: the highest smoothed rate of success, then score, then the order given."""
        episodes, successes, scores = self.counts(seeds).T
        rates = smoothed(self.candidates, successes, episodes).round(9)
        return sorted(candidates, key=lambda c: (rates[c], scores[c]), reverse=True)

    def halving(self, alive: Sequence[int], begin: int, budget: int) -> tuple[list[int], list[Pair]]:
        """Sequential halving (Karnin et al. 2013, algorithm 1) on paired seeds: who is left, best first, and their next round.

        All of `alive` have the first `begin` seeds. Each round spends an equal part of `budget` (episodes) on seeds that are
        new and the same for all who are left, then keeps the better half by all seeds so far. The round is empty at the end.
        """
        left = list(alive)
        while len(left) > 1:
            rounds = (len(left) - 1).bit_length()
            share = max(1, budget // (rounds * len(left)))
            if share * len(left) > budget:
                break
            if due := self.missing(left, begin, begin + share):
                return left, due
            begin, budget = begin + share, budget - share * len(left)
            left = self.ranked(left, begin)[: (len(left) + 1) // 2]
        return left, []


@dataclass(kw_only=True)
class Grid(Told):
    """Every point of the simplex on the same seeds, the paper's search (arXiv 2510.01068, section 4)."""

    episodes: int

    def __post_init__(self) -> None:
        self.candidates = simplex(self.policies, self.step)

    @property
    def seeds(self) -> range:
        """See `Search`."""
        return range(self.seed, self.seed + self.episodes)

    def ask(self) -> list[Pair]:
        """Everything at once."""
        return self.missing(range(len(self.candidates)), 0, self.episodes)

    def best(self) -> int:
        """The most successes, then the highest score, then the first."""
        _, successes, scores = self.counts(self.episodes).T
        return max(range(len(self.candidates)), key=lambda c: (successes[c], scores[c]))


@dataclass(kw_only=True)
class Racing(Told):
    """Sequential halving over the points of the simplex; only who is left at the end can win.

    With a prior the half with the least predicted error starts, and the parents in any case.
    """

    budget: int

    def __post_init__(self) -> None:
        self.candidates = simplex(self.policies, self.step)
        if self.budget < len(self._starters()):
            raise InputError(
                f"search.budget={self.budget} is less than one episode for each of {len(self._starters())} candidates; "
                "raise it, or search.step"
            )

    @property
    def seeds(self) -> range:
        """See `Search`; no seed is run for one candidate alone."""
        return range(self.seed, self.seed + self.budget // 2)

    def ask(self) -> list[Pair]:
        """A round of the race."""
        return self._race()[1]

    def best(self) -> int:
        """The best of those who are still in the race, by the rounds that are over."""
        return self._race()[0][0]

    def _race(self) -> tuple[list[int], list[Pair]]:
        return self.halving(self._starters(), 0, self.budget)

    def _starters(self) -> list[int]:
        everyone = list(range(len(self.candidates)))
        if self.prior is None:
            return everyone
        predicted = [self.prior.predicted(weights) for weights in self.candidates]
        half = sorted(everyone, key=predicted.__getitem__)[: (len(everyone) + 1) // 2]
        parents = [self.candidates.index(weights) for weights in self.parents]
        return list(dict.fromkeys([*half, *parents]))


@dataclass(kw_only=True)
class Proposing(Told, ABC):
    """Searches that make up their candidates: half of the budget proposes, the other half races the better proposals.

    Each candidate is given the same `episodes` seeds when it is proposed: first the parents and what a prior says is best.
    By these seeds the better half goes on to the race (`halving`).
    """

    budget: int
    episodes: int
    finished: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        first = [] if self.prior is None else [rounded(self.prior.best(), self.step)]
        self.candidates = list(dict.fromkeys([*self.parents, *first]))
        least = len(self.candidates) * self.episodes
        if self.budget < least:
            raise InputError(
                f"search.budget={self.budget} is less than search.episodes={self.episodes} for each of the first "
                f"{len(self.candidates)} candidates; give at least {least}"
            )

    @property
    def seeds(self) -> range:
        """See `Search`; no seed is run for one candidate alone."""
        return range(self.seed, self.seed + self.budget // 2)

    def ask(self) -> list[Pair]:
        """What the newest candidates lack, then a round of the race."""
        due = self.missing(range(len(self.candidates)), 0, self.episodes)
        if not due and not self.finished:
            new = self._new()
            self.candidates += [new] if new else []
            self.finished = new is None
            due = self.missing(range(len(self.candidates)), 0, self.episodes)
        return due or self._race()[1]

    def best(self) -> int:
        """The best of all by their first seeds; once the race is on, the best of those who are still in it."""
        return self._race()[0][0]

    @abstractmethod
    def propose(self) -> Weights:
        """The next weights to try, a multiple of `step`; they may be known already."""

    def _new(self) -> Weights | None:
        """One candidate more, or None where the budget for proposals is spent or nothing new comes."""
        if 2 * (len(self.candidates) + 1) * self.episodes > self.budget:
            return None
        proposals = (self.propose() for _ in range(REPEATS))
        return next((weights for weights in proposals if weights not in self.candidates), None)

    def _race(self) -> tuple[list[int], list[Pair]]:
        everyone = self.ranked(range(len(self.candidates)), self.episodes)
        if not self.finished:
            return everyone, []
        spent = len(everyone) * self.episodes
        return self.halving(everyone[: (len(everyone) + 1) // 2], self.episodes, self.budget - spent)


@dataclass(kw_only=True)
class Random(Proposing):
    """Weights drawn uniformly from the simplex: what any cleverer proposal must beat."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._generator = np.random.default_rng(self.seed)

    def propose(self) -> Weights:
        """Dirichlet(1, ..., 1)."""
        return rounded(self._generator.dirichlet(np.ones(self.policies)), self.step)


@dataclass(kw_only=True)
class Demos(Told):
    """What the prior says is best, without a rollout: winner and parents meet on the report seeds only."""

    def __post_init__(self) -> None:
        if self.prior is None:
            raise InputError("search=demos reads held-out demonstrations; name them, as in search.demonstrations=FILE")
        self.candidates = list(dict.fromkeys([rounded(self.prior.best(), self.step), *self.parents]))

    @property
    def seeds(self) -> range:
        """None."""
        return range(self.seed, self.seed)

    def ask(self) -> list[Pair]:
        """Nothing."""
        return []

    def best(self) -> int:
        """The prior's best."""
        return 0
