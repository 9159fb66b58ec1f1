"""Logical operators: samples that one policy OR another finds likely, or that one AND another find equally likely.

The superposition of diffusion models (Skreta et al. 2024, arXiv 2412.17762): each member's log-density is followed
along the reverse SDE by Ito's lemma, and the members' scores are mixed by these log-densities. In the one coordinate (x
= x0 + sigma noise, Delta the fall of sigma^2 in a step) their eq. 12 reads

    log q_k  +=  <x' - x, score_k> - Delta / 2 |score_k|^2.

It holds along the SDE (`sampler=ancestral`), and as a discretisation: use many steps. Networks' scores are no exact
gradients of a log-density, so both operators are approximations.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from gpc.composition.composers import Convex, ConvexWeights
from gpc.errors import InputError

RIDGE = 1e-6  # of the scores' mean square; `And` adds it because equal members leave the weights open


@dataclass(frozen=True, init=False, eq=False)
class Superposed(ConvexWeights):
    """Base of `Or` and `And`; weights are probabilities before sampling."""

    stochastic: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    @property
    def prior(self) -> Convex:
        """Mixture at the first level, and at entries that not all members contribute to."""
        return Convex().with_weights(self.weights)

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """Return which members have weight."""
        return self.prior.active_members(mask, sigma)

    def start(self) -> DensityTracker:
        """Return a composer that follows one batch of chunks from level to level."""
        return DensityTracker(self)

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Combine the members' outputs as at the first level, see `Composer`."""
        return self.start()(x, sigma, denoised, mask)

    @abstractmethod
    def member_weights(self, log_density: Tensor, prior: Tensor, scores: Tensor, delta: Tensor) -> Tensor:
        """Return the weights of one level, (K, batch), with the sum 1.

        Args:
            log_density: Gain of each log-density along the path, (K, batch).
            prior: Logarithms of the composer's weights, (K, batch or 1).
            scores: (K, batch, n).
            delta: Fall of sigma^2 in the next step, ().
        """


@dataclass(frozen=True, init=False, eq=False)
class Or(Superposed):
    """Softmax of `temperature * log-density + log weight`: samples of the mixture.

    Eq. 13 of the paper. Temperature 0 is `Convex`.

    Raises:
        InputError: If the weights are not convex, or the temperature is below 0.
    """

    temperature: float = 1.0

    def __init__(self, weights: Sequence[float] | Tensor = (), temperature: float = 1.0) -> None:
        super().__init__(weights)
        object.__setattr__(self, "temperature", temperature)
        if not 0 <= temperature < float("inf"):
            raise InputError(f"temperature={temperature}: give a number of at least 0")

    def member_weights(self, log_density: Tensor, prior: Tensor, scores: Tensor, delta: Tensor) -> Tensor:
        """Return the weights of one level, see `Superposed`."""
        return (self.temperature * log_density + prior).softmax(0)


@dataclass(frozen=True, init=False, eq=False)
class And(Superposed):
    """The mixture that makes all log-densities equal after the step, in expectation.

    Proposition 6 of the paper. With unequal weights the densities keep that proportion. The mixture's weights may be
    negative. A difference that the noise of a step makes is corrected in the next step.
    """

    def member_weights(self, log_density: Tensor, prior: Tensor, scores: Tensor, delta: Tensor) -> Tensor:
        """Return the weights of one level, see `Superposed`.

        With G the scores' Gram matrix, Z a basis of the vectors that sum to zero and 1 / K + Z u the weights:
        Z' (delta G (1 / K + Z u) - delta / 2 diag(G) + log_density - prior) = 0.
        """
        count = len(scores)
        if count == 1:
            return torch.ones_like(log_density)
        if not prior.isfinite().all():
            raise InputError("and: the rows of one batch must give weight to the same policies")
        plane = torch.linalg.svd(torch.ones(1, count, dtype=scores.dtype)).Vh[1:].T
        gram = torch.einsum("kbn,lbn->bkl", scores, scores)
        squares = gram.diagonal(dim1=1, dim2=2)
        right = squares / 2 - gram.mean(2) - (log_density - prior).T / delta
        ridge = RIDGE * squares.mean(1)[:, None, None].clamp(min=torch.finfo(squares.dtype).tiny ** 0.5)
        inner = plane.T @ gram @ plane + ridge * torch.eye(count - 1, dtype=squares.dtype)
        shift = torch.linalg.solve(inner, (right @ plane).unsqueeze(-1))
        weights: Tensor = 1 / count + (plane @ shift).squeeze(-1)
        return weights.T


@dataclass
class DensityTracker:
    """The composer of one batch of chunks on its way down the levels."""

    rule: Superposed
    log_density: Tensor | None = field(default=None, init=False)
    last: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)  # x, scores, sigma

    stochastic: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def start(self) -> DensityTracker:
        """Return a tracker for a new batch."""
        return self.rule.start()

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """Return which members have weight."""
        return self.rule.active_members(mask, sigma)

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Combine the members' outputs, see `Composer`."""
        mixed = self.rule.prior(x, sigma, denoised, mask)
        active = [k for k, member in enumerate(denoised) if member is not None]
        shared = mask[active].bool().all(0)
        if not bool(shared.any()):
            return mixed
        members = torch.stack([member[:, shared] for member in denoised if member is not None])
        shared_x = x[:, shared]
        scores = (members - shared_x) / sigma.max() ** 2
        log_density, delta = self._update_log_density(shared_x, scores, sigma.max())
        prior = self.rule.weights.reshape(-1, len(denoised)).T[active].to(x).log()
        weights = self.rule.member_weights(log_density, prior, scores, delta)
        mixed[:, shared] = (weights[..., None] * members).sum(0)
        return mixed

    def _update_log_density(self, x: Tensor, scores: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-densities (K, batch) at x (batch, n) and the fall of sigma^2.

        The next fall is predicted from the last one: sigma falls by the same factor.
        """
        if self.log_density is None or self.last is None or self.last[2] <= sigma:
            self.log_density, delta = x.new_zeros(scores.shape[:2]), sigma**2
        else:
            last_x, slopes, last_sigma = self.last
            fall = last_sigma**2 - sigma**2
            self.log_density = self.log_density + ((x - last_x) * slopes).sum(-1) - fall / 2 * slopes.square().sum(-1)
            delta = sigma**2 * fall / last_sigma**2
        self.last = x, scores, sigma
        return self.log_density, delta
