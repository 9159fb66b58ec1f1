"""Bayesian search of the weights by Optuna: its samplers propose, `weight_search.Proposing` does the rest.

The samplers see the unit cube. Weights are broken off a stick: of what the policies before have left, policy k takes the
part `1 - (1 - u_k)^(1 / m)`, m being the number of policies after it, and the last one takes the rest. A uniform u gives
weights that are uniform on the simplex (the part of the first of m + 1 is Beta(1, m)); for two policies u is the first weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from gpc.errors import InputError, suggest
from gpc.weights.searches import Proposing
from gpc.weights.simplex import Weights, rounded

SAMPLERS = {"tpe": "TPESampler", "gp": "GPSampler"}
TIE = 1e-3  # what a point of score is worth in points of success


def from_cube(u: Sequence[float]) -> Weights:
    """Coordinates (K - 1,) in [0, 1] -> convex weights (K,); see the module."""
    weights, rest = [], 1.0
    for k, part in enumerate(u):
        weights.append(rest * (1 - (1 - part) ** (1 / (len(u) - k))))
        rest -= weights[-1]
    return (*weights, max(rest, 0.0))


def to_cube(weights: Sequence[float]) -> list[float]:
    """The inverse of `from_cube`; 0 where nothing is left to share out."""
    after = np.cumsum(weights[::-1])[::-1]
    parts = [w / rest if rest > 1e-12 else 0.0 for w, rest in zip(weights, after, strict=True)][:-1]
    return [1 - max(0.0, 1 - part) ** (len(parts) - k) for k, part in enumerate(parts)]


@dataclass(kw_only=True)
class Bayesian(Proposing):
    """Optuna's samplers on the simplex: "tpe" (Bergstra et al. 2011) or "gp", a Gaussian process.

    A candidate is worth its rate of success on its first seeds, ties being broken by its score. Raises InputError where Optuna
    is missing or `sampler` is none of its.
    """

    sampler: str
    _known: int = field(init=False, default=0)  # candidates that Optuna was told of

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in SAMPLERS:
            raise InputError(f"unknown sampler {self.sampler!r}{suggest(self.sampler, list(SAMPLERS))}")
        self._optuna = _optuna()
        sampler = getattr(self._optuna.samplers, SAMPLERS[self.sampler])(seed=self.seed)
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        axes = range(self.policies - 1)
        self._axes = {f"u{k}": self._optuna.distributions.FloatDistribution(0, 1) for k in axes}

    def propose(self) -> Weights:
        """What the sampler makes of all results so far."""
        while self._known < len(self.candidates):
            self._learn(self._known)
            self._known += 1
        trial = self._study.ask(self._axes)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # what counts is the rounded point
        weights = rounded(from_cube(list(trial.params.values())), self.step)
        if weights in self.candidates:  # so that the sampler looks elsewhere
            self._learn(self.candidates.index(weights))
        return weights

    def _learn(self, candidate: int) -> None:
        found = [self.results[candidate, self.seed + i] for i in range(self.episodes)]
        worth = float(np.mean([outcome.success + TIE * outcome.score for outcome in found]))
        params = dict(zip(self._axes, to_cube(self.candidates[candidate]), strict=True))
        self._study.add_trial(self._optuna.trial.create_trial(params=params, distributions=self._axes, value=worth))


def _optuna() -> Any:
    try:
        optuna = import_module("optuna")
    except ImportError:
        raise InputError("search=tpe and search=gp need Optuna: pip install 'gpc[search]'") from None
    optuna.logging.set_verbosity(
        optuna.logging.ERROR
    )  # it tells of every study, and of packages that it can do without
    return optuna
