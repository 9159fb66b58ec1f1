"""Logical operators: samples that one policy OR another finds likely, or that one AND the other finds equally likely.

The superposition of diffusion models (Skreta et al. 2024, arXiv 2412.17762): each member's log-density is followed along the
reverse SDE by Ito's lemma, and the members' scores are mixed by what they say of the chunk so far. In the one coordinate
(x = x0 + sigma noise, Delta the fall of sigma^2 in a step) their eq. 12 reads

    log q_k  +=  <x' - x, score_k> - Delta / 2 |score_k|^2.

It holds along the SDE (`sampler=ancestral`), and as a discretisation: use many steps. Networks' scores are no exact
gradients of a log-density, so both operators are approximations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from gpc.composition.composers import Convex
from gpc.errors import InputError

RIDGE = 1e-6  # of the scores' mean square: what `And` adds where members agree and no mixture can tell them apart


@dataclass(frozen=True)
class Superposed(ABC):
    """What `Or` and `And` share. `weights` (K,) or (batch, K), convex: how likely each member is before it has spoken."""

    weights: Tensor
    stochastic: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _ = self.prior

    @cached_property
    def prior(self) -> Convex:
        """The mixture where nothing is known, and on steps and in dimensions that not all members have."""
        return Convex(self.weights)

    def with_weights(self, weights: Tensor) -> Self:
        """See `HasWeights`."""
        return replace(self, weights=weights)

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """See `Composer`: whoever has weight."""
        return self.prior.active_members(mask, sigma)

    def start(self) -> DensityTracker:
        """See `Composer`: the result follows one batch of chunks from level to level."""
        return DensityTracker(self)

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """See `Composer`: as at the first level."""
        return self.start()(x, sigma, denoised, mask)

    @abstractmethod
    def member_weights(self, log_density: Tensor, prior: Tensor, scores: Tensor, delta: Tensor) -> Tensor:
        """The weights (K, batch), summing to one, for this level.

        log_density (K, batch): what the path so far has gained; prior (K, batch or 1): the logs of `weights`; scores
        (K, batch, n); delta (): how far sigma^2 is about to fall.
        """


@dataclass(frozen=True)
class Or(Superposed):
    """Softmax(temperature log-density + log weights): samples of the weights' mixture of densities (eq. 13 of the paper).

    Temperature 0 is `Convex`.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature={self.temperature}: give a number of at least 0")

    def member_weights(self, log_density: Tensor, prior: Tensor, scores: Tensor, delta: Tensor) -> Tensor:
        """See `Superposed`."""
        return (self.temperature * log_density + prior).softmax(0)


@dataclass(frozen=True)
class And(Superposed):
    """The mixture under which all log-densities are expected to be equal after the step (proposition 6 of the paper).

    With unequal weights the densities are held in that proportion. The mixture's weights may be negative. A difference that
    noise has made since the last level is mended in the next one.
    """

    def member_weights(self, log_density: Tensor, prior: Tensor, scores: Tensor, delta: Tensor) -> Tensor:
        """See `Superposed`.

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
        own = gram.diagonal(dim1=1, dim2=2)
        wanted = own / 2 - gram.mean(2) - (log_density - prior).T / delta
        ridge = RIDGE * own.mean(1)[:, None, None].clamp(min=torch.finfo(own.dtype).tiny ** 0.5)
        inner = plane.T @ gram @ plane + ridge * torch.eye(count - 1, dtype=own.dtype)
        away = torch.linalg.solve(inner, (wanted @ plane).unsqueeze(-1))
        weights: Tensor = 1 / count + (plane @ away).squeeze(-1)
        return weights.T


@dataclass
class DensityTracker:
    """A superposition on its way down the levels: itself a `Composer`, for one batch of chunks."""

    rule: Superposed
    log_density: Tensor | None = field(default=None, init=False)
    last: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)  # x, scores, sigma

    stochastic: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def start(self) -> DensityTracker:
        """See `Composer`."""
        return self.rule.start()

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """See `Composer`."""
        return self.rule.active_members(mask, sigma)

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """See `Composer`."""
        mixed = self.rule.prior(x, sigma, denoised, mask)
        asked = [k for k, member in enumerate(denoised) if member is not None]
        shared = mask[asked].bool().all(0)
        if not bool(shared.any()):
            return mixed
        members = torch.stack([member[:, shared] for member in denoised if member is not None])
        seen = x[:, shared]
        scores = (members - seen) / sigma.max() ** 2
        log_density, delta = self._update_log_density(seen, scores, sigma.max())
        prior = self.rule.weights.reshape(-1, len(denoised)).T[asked].to(x).log()
        weights = self.rule.member_weights(log_density, prior, scores, delta)
        mixed[:, shared] = (weights[..., None] * members).sum(0)
        return mixed

    def _update_log_density(self, x: Tensor, scores: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The log-densities (K, batch) at x (batch, n), and how far sigma^2 will fall, if it falls as it did."""
        if self.log_density is None or self.last is None or self.last[2] <= sigma:
            self.log_density, delta = x.new_zeros(scores.shape[:2]), sigma**2
        else:
            before, slopes, above = self.last
            fallen = above**2 - sigma**2
            self.log_density = self.log_density + ((x - before) * slopes).sum(-1) - fallen / 2 * slopes.square().sum(-1)
            delta = sigma**2 * fallen / above**2
        self.last = x, scores, sigma
        return self.log_density, delta
