"""Weight searches: `ask` returns weights to try, `tell` takes the outcomes.

A search contains no simulator. `ask` returns the next round of (candidate, seed) pairs to roll out, an empty round at
the end; `tell` takes their outcomes; `best` may be called at any time. A round depends on the settings and on the
outcomes alone, so a search that receives its recorded outcomes resumes at the round at which it was stopped.

Every candidate uses the seeds in order, from the first on. Two candidates therefore share initial states and noise in
the episodes that both have (common random numbers), and only candidates with the same seeds are compared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from gpc.errors import InputError
from gpc.objects import settings_of
from gpc.schema import Count, Seed, check
from gpc.weights.simplex import Weights, one_hot, simplex, to_grid

Array = npt.NDArray[np.float64]
Pair = tuple[int, int]
"""(candidate, seed)."""

GP_LENGTHSCALE, GP_STD, GP_NUGGET_STD = 0.3, 0.15, 0.05  # of `gp_success_rate`; docs/search.md has their influence
LEAST_SEEDS = 5  # of a mixture, before it may be dropped
REPEATS = 20  # proposals in a row that are candidates already, after which a search stops proposing


@dataclass(frozen=True)
class Outcome:
    """Success and score of one episode."""

    success: bool
    score: float


class Prior(Protocol):
    """A prediction for weights without a rollout."""

    def predicted(self, weights: Weights) -> float:
        """Return the predicted error; lower is better."""

    def best(self) -> Weights:
        """Return the convex weights with the lowest predicted error."""


class Search(Protocol):
    """Ask / tell over candidate weights.

    A candidate's number is its index in `candidates`, to which a search may append. Each policy alone is a candidate
    from the start.
    """

    candidates: list[Weights]

    def start(self, policies: int, prior: Prior | None = None) -> Search:
        """Return the search for this many policies, before its first round."""

    @property
    def seeds(self) -> range:
        """All seeds that `ask` may return."""

    def ask(self) -> list[Pair]:
        """Return the next (candidate, seed) pairs; an empty list ends the search."""

    def tell(self, results: Mapping[Pair, Outcome]) -> None:
        """Add the outcomes of the pairs that `ask` returned."""

    def best(self) -> int:
        """Return the number of the best candidate so far."""


def gp_success_rate(weights: Sequence[Weights], successes: Array, episodes: Array) -> Array:
    """Estimate success rates of weights from their and their neighbours' episodes.

    The estimate is the posterior mean of a Gaussian process (Rasmussen & Williams 2006, eq. 2.23) about the overall
    rate. Its covariance is GP_STD^2 exp(-d^2 / (2 GP_LENGTHSCALE^2)), with d the Euclidean distance / sqrt(2), so that
    neighbours on a grid are one `step` apart. A nugget of standard deviation GP_NUGGET_STD lets many episodes of one
    point outweigh its neighbours; the noise of a point is binomial.

    Args:
        weights: n points on the simplex.
        successes: successes at each point, (n,).
        episodes: episodes at each point, (n,); 0 is allowed.

    Returns:
        Rates (n,).
    """
    total = episodes.sum()
    if total == 0:
        return np.zeros(len(weights))
    rate = successes.sum() / total
    data = episodes > 0
    points = np.array(weights)
    squares = ((points[:, None] - points[None, data]) ** 2).sum(-1) / 2
    smooth = GP_STD**2 * np.exp(-squares / (2 * GP_LENGTHSCALE**2))
    covariance = smooth + GP_NUGGET_STD**2 * np.eye(len(points))[:, data]
    noise = max(rate * (1 - rate), 1 / total) / episodes[data]
    residual = successes[data] / episodes[data] - rate
    posterior: Array = rate + covariance @ np.linalg.solve(covariance[data] + np.diag(noise), residual)
    return posterior


@dataclass(kw_only=True)
class BaseSearch(ABC):
    """Base class of the searches: settings, candidates and outcomes.

    Candidates, and outcomes by (candidate, seed), exist after `start`.
    """

    step: float = 0.1
    seed: Seed = 100_000
    policies: int = field(init=False, repr=False, default=0)
    prior: Prior | None = field(init=False, repr=False, default=None)
    candidates: list[Weights] = field(init=False, repr=False, default_factory=list)
    results: dict[Pair, Outcome] = field(init=False, repr=False, default_factory=dict)

    def start(self, policies: int, prior: Prior | None = None) -> Self:
        """Return a search with these settings, before its first round.

        Args:
            policies: number of policies.
            prior: prediction from demonstrations.

        Raises:
            InputError: If the settings do not fit.
        """
        for name, setting in settings_of(type(self)).items():
            check(setting.type, getattr(self, name), f"search.{name}")
        search = replace(self)
        search.policies, search.prior = policies, prior
        search._begin()
        return search

    @abstractmethod
    def _begin(self) -> None:
        """Make the first candidates."""

    @property
    def parents(self) -> list[Weights]:
        """One-hot weights of each policy."""
        return [one_hot(i, self.policies) for i in range(self.policies)]

    def tell(self, results: Mapping[Pair, Outcome]) -> None:
        """Add outcomes by (candidate, seed)."""
        self.results.update(results)

    def pending(self, candidates: Iterable[int], begin: int, end: int) -> list[Pair]:
        """Return the pairs without an outcome; `begin` and `end` count seeds."""
        pairs = [(c, self.seed + i) for c in candidates for i in range(begin, end)]
        return [pair for pair in pairs if pair not in self.results]

    def tally(self, seeds: int) -> Array:
        """Sum episodes, successes, scores on the first `seeds` seeds, (candidates, 3)."""
        sums = np.zeros((len(self.candidates), 3))
        for (candidate, seed), outcome in self.results.items():
            if seed < self.seed + seeds:
                sums[candidate] += 1, outcome.success, outcome.score
        return sums

    def ranked(self, candidates: Iterable[int], seeds: int) -> list[int]:
        """Sort candidates, best first, by success rate and score on `seeds` seeds."""
        episodes, successes, scores = self.tally(seeds).T
        rates = gp_success_rate(self.candidates, successes, episodes).round(9)
        return sorted(candidates, key=lambda c: (rates[c], scores[c]), reverse=True)

    def race(self, starters: Sequence[int], begin: int, budget: int) -> tuple[list[int], list[Pair]]:
        """Race candidates on paired seeds; parents stay to the last round.

        Sequential halving (Karnin et al. 2013, algorithm 1) of the mixtures. Each round spends an equal part of the
        budget on new seeds, the same for all remaining candidates, and then keeps the parents and the better half of
        the mixtures by all seeds so far. No mixture is dropped on fewer than `LEAST_SEEDS` seeds.

        Args:
            starters: candidates at the start, all of which have the first `begin` seeds.
            begin: number of seeds before the race.
            budget: episodes of the race.

        Returns:
            The remaining candidates, best first, and the pairs of the next round, which is empty at the end.
        """
        parents = {self.candidates.index(weights) for weights in self.parents}
        remaining, mixtures = list(starters), len(set(starters) - parents)
        for rounds in range(max(1, (mixtures - 1).bit_length()), 0, -1):
            share = max(1, LEAST_SEEDS - begin, budget // (rounds * len(remaining)))
            if share * len(remaining) > budget:
                break
            if due := self.pending(remaining, begin, begin + share):
                return remaining, due
            begin, budget, mixtures = begin + share, budget - share * len(remaining), (mixtures + 1) // 2
            ranking = self.ranked(remaining, begin)
            better = [c for c in ranking if c not in parents][:mixtures]
            remaining = [c for c in ranking if c in parents or c in better]
        return remaining, []


@dataclass(kw_only=True)
class Grid(BaseSearch):
    """All points of the simplex on the same seeds (arXiv 2510.01068, section 4)."""

    episodes: Count = 20

    def _begin(self) -> None:
        self.candidates = simplex(self.policies, self.step)

    @property
    def seeds(self) -> range:
        """All seeds of a candidate."""
        return range(self.seed, self.seed + self.episodes)

    def ask(self) -> list[Pair]:
        """Return all pairs in one round."""
        return self.pending(range(len(self.candidates)), 0, self.episodes)

    def best(self) -> int:
        """Return the candidate with the most successes; ties go to the higher score."""
        _, successes, scores = self.tally(self.episodes).T
        return max(range(len(self.candidates)), key=lambda c: (successes[c], scores[c]))


@dataclass(kw_only=True)
class Racing(BaseSearch):
    """Sequential halving over the points of the simplex.

    The parents and one mixture reach the end; the best of them on all their seeds wins. With a prior only the half with
    the least predicted error and the parents start.
    """

    budget: Count = 440

    def _begin(self) -> None:
        self.candidates = simplex(self.policies, self.step)
        least = LEAST_SEEDS * len(self._starters())
        if self.budget < least:
            raise InputError(
                f"search.budget={self.budget} is less than {LEAST_SEEDS} episodes for each of {len(self._starters())} "
                f"candidates; give at least {least}, or a larger search.step"
            )

    @property
    def seeds(self) -> range:
        """All seeds that two candidates may share."""
        return range(self.seed, self.seed + self.budget // 2)

    def ask(self) -> list[Pair]:
        """Return the next round of the race."""
        return self._race()[1]

    def best(self) -> int:
        """Return the best remaining candidate by all finished rounds."""
        return self._race()[0][0]

    def _race(self) -> tuple[list[int], list[Pair]]:
        return self.race(self._starters(), 0, self.budget)

    def _starters(self) -> list[int]:
        numbers = list(range(len(self.candidates)))
        if self.prior is None:
            return numbers
        predicted = [self.prior.predicted(weights) for weights in self.candidates]
        half = sorted(numbers, key=predicted.__getitem__)[: (len(numbers) + 1) // 2]
        parents = [self.candidates.index(weights) for weights in self.parents]
        return list(dict.fromkeys([*half, *parents]))


@dataclass(kw_only=True)
class ProposalSearch(BaseSearch):
    """Base class of searches that propose candidates.

    Half of the budget proposes, the other half races the better half of the candidates. Each candidate is rolled out on
    the same `episodes` seeds when it is proposed. The first candidates are the parents and the prior's best weights.
    The better half by these seeds and the parents enter the race.
    """

    step: float = 0.05
    budget: Count = 440
    episodes: Count = 10
    finished: bool = field(init=False, repr=False, default=False)

    def _begin(self) -> None:
        first = [] if self.prior is None else [to_grid(self.prior.best(), self.step)]
        self.candidates = list(dict.fromkeys([*self.parents, *first]))
        least = len(self.candidates) * self.episodes
        if self.budget < least:
            raise InputError(
                f"search.budget={self.budget} is less than search.episodes={self.episodes} for each of the first "
                f"{len(self.candidates)} candidates; give at least {least}"
            )

    @property
    def seeds(self) -> range:
        """All seeds that two candidates may share."""
        return range(self.seed, self.seed + self.budget // 2)

    def ask(self) -> list[Pair]:
        """Return the first seeds of new candidates, afterwards the rounds of the race."""
        due = self.pending(range(len(self.candidates)), 0, self.episodes)
        if not due and not self.finished:
            new = self._new()
            self.candidates += [new] if new else []
            self.finished = new is None
            due = self.pending(range(len(self.candidates)), 0, self.episodes)
        return due or self._race()[1]

    def best(self) -> int:
        """Return the best candidate; during the race, the best remaining one."""
        return self._race()[0][0]

    @abstractmethod
    def propose(self) -> Weights:
        """Return weights to try, multiples of `step`; they may be a candidate already."""

    def _new(self) -> Weights | None:
        """Return a new candidate; None at the end of proposals."""
        if 2 * (len(self.candidates) + 1) * self.episodes > self.budget:
            return None
        proposals = (self.propose() for _ in range(REPEATS))
        return next((weights for weights in proposals if weights not in self.candidates), None)

    def _race(self) -> tuple[list[int], list[Pair]]:
        ranking = self.ranked(range(len(self.candidates)), self.episodes)
        if not self.finished:
            return ranking, []
        spent = len(ranking) * self.episodes
        half = ranking[: (len(ranking) + 1) // 2]
        starters = [c for c in ranking if c in half or self.candidates[c] in self.parents]
        return self.race(starters, self.episodes, self.budget - spent)


@dataclass(kw_only=True)
class Random(ProposalSearch):
    """Weights drawn uniformly from the simplex: the baseline of other proposals."""

    def _begin(self) -> None:
        super()._begin()
        self._generator = np.random.default_rng(self.seed)

    def propose(self) -> Weights:
        """Draw from Dirichlet(1, ..., 1)."""
        return to_grid(self._generator.dirichlet(np.ones(self.policies)), self.step)


@dataclass(kw_only=True)
class FromDemonstrations(BaseSearch):
    """The prior's best weights, without rollouts of a search.

    Winner and parents are compared on the report seeds only.
    """

    step: float = 0.01
    seed: Seed = field(init=False, default=0)

    def _begin(self) -> None:
        if self.prior is None:
            raise InputError("search=demos reads held-out demonstrations; name them, as in demonstrations=FILE")
        self.candidates = list(dict.fromkeys([to_grid(self.prior.best(), self.step), *self.parents]))

    @property
    def seeds(self) -> range:
        """An empty range."""
        return range(self.seed, self.seed)

    def ask(self) -> list[Pair]:
        """Return no pairs."""
        return []

    def best(self) -> int:
        """Return the number of the prior's best weights."""
        return 0
