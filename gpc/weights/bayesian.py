"""Bayesian search of the weights: Optuna's samplers propose, `gpc.weights.searches.ProposalSearch` races.

The samplers propose points u of the unit cube, which stick-breaking turns into weights: policy k takes the part `1 - (1
- u_k)^(1 / m)` of the remaining stick for m policies after it, and the last policy takes the rest.
A uniform u gives uniform weights on the simplex (the part of the first of m + 1 policies is Beta(1, m)); for two
policies u is the first weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from gpc.errors import InputError
from gpc.installation import install
from gpc.weights.searches import ProposalSearch
from gpc.weights.simplex import Weights, to_grid

SCORE_WEIGHT = 1e-3  # of score beside success, to break ties


def stick_breaking(u: Sequence[float]) -> Weights:
    """Map coordinates (K - 1,) in [0, 1] to convex weights (K,)."""
    weights, rest = [], 1.0
    for k, part in enumerate(u):
        weights.append(rest * (1 - (1 - part) ** (1 / (len(u) - k))))
        rest -= weights[-1]
    return (*weights, max(rest, 0.0))


def inverse_stick_breaking(weights: Sequence[float]) -> list[float]:
    """Map convex weights (K,) to coordinates (K - 1,); 0 if no stick remains."""
    after = np.cumsum(weights[::-1])[::-1]
    parts = [w / rest if rest > 1e-12 else 0.0 for w, rest in zip(weights, after, strict=True)][:-1]
    return [1 - max(0.0, 1 - part) ** (len(parts) - k) for k, part in enumerate(parts)]


@dataclass(kw_only=True)
class Bayesian(ProposalSearch):
    """Base class of the searches whose candidates a sampler of Optuna proposes.

    The objective is the success rate on a candidate's first seeds; the score breaks ties. `start` raises InputError if
    Optuna is missing.
    """

    sampler: ClassVar[str]  # a class of optuna.samplers
    _reported: int = field(init=False, repr=False, default=0)  # candidates whose outcomes Optuna has

    def _begin(self) -> None:
        super()._begin()
        self._optuna = _optuna()
        sampler = getattr(self._optuna.samplers, self.sampler)(seed=self.seed)
        self._study = self._optuna.create_study(direction="maximize", sampler=sampler)
        axes = range(self.policies - 1)
        self._axes = {f"u{k}": self._optuna.distributions.FloatDistribution(0, 1) for k in axes}

    def propose(self) -> Weights:
        """Return the sampler's next point, given all outcomes so far."""
        while self._reported < len(self.candidates):
            self._report(self._reported)
            self._reported += 1
        trial = self._study.ask(self._axes)
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # only the rounded point is reported
        weights = to_grid(stick_breaking(list(trial.params.values())), self.step)
        if weights in self.candidates:  # so that the sampler proposes another point
            self._report(self.candidates.index(weights))
        return weights

    def _report(self, candidate: int) -> None:
        outcomes = [self.results[candidate, self.seed + i] for i in range(self.episodes)]
        value = float(np.mean([outcome.success + SCORE_WEIGHT * outcome.score for outcome in outcomes]))
        params = dict(zip(self._axes, inverse_stick_breaking(self.candidates[candidate]), strict=True))
        self._study.add_trial(self._optuna.trial.create_trial(params=params, distributions=self._axes, value=value))


@dataclass(kw_only=True)
class GaussianProcess(Bayesian):
    """Optuna's Gaussian process."""

    sampler = "GPSampler"


@dataclass(kw_only=True)
class TreeParzen(Bayesian):
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011)."""

    sampler = "TPESampler"


def _optuna() -> Any:
    try:
        optuna = import_module("optuna")
    except ImportError:
        raise InputError(f"search=tpe and search=gp need Optuna: {install('search')}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # no notes on each study and on optional packages
    return optuna
