"""Composers: how the members' denoised actions become one.

A convex combination of scores at one (x, sigma) is the same convex combination of `denoised` (General Policy Composition, Cao
et al., arXiv 2510.01068); guidance is the same sum with signed weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self, final, runtime_checkable

import torch
from torch import Tensor

from gpc.errors import InputError

ROUNDING = 1e-9  # weights that sum to one but for rounding leave nothing of x, so that one-hot weights are the parent bit for bit


class Composer(Protocol):
    """Combines the members' denoised actions at one (x, sigma)."""

    @property
    def stochastic(self) -> bool:
        """True if the composer follows a batch along the noisy steps of a stochastic sampler."""

    @property
    def linear(self) -> bool:
        """True if the result is a sum of the members' denoised actions, so that a cost can steer the sum as a whole."""

    def start(self) -> Composer:
        """Return the composer for a new batch of chunks; one without a state returns itself."""

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Combine.

        x (batch, horizon, action); sigma (); denoised[k] like x, or None where member k is not needed; mask
        (K, horizon, action): 1 where member k acts in this dimension at this step and was trained at this sigma.
        """

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """Which members have any influence at sigma (None: at any), given their masks (K, horizon, action)."""


@runtime_checkable
class HasWeights(Composer, Protocol):
    """A composer with one weight for each policy, which may be exchanged."""

    @property
    def weights(self) -> Tensor:
        """(K,) or (batch, K)."""

    def with_weights(self, weights: Tensor) -> HasWeights:
        """The same composer under other weights; InputError where they are not what it takes."""


class Stateless:
    """Defaults of a composer that keeps nothing from one noise level to the next."""

    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def start(self) -> Self:
        """See `Composer`."""
        return self


@dataclass(frozen=True)
class Weighted(Stateless, ABC):
    """`x + sum_i w_i (denoised_i - x)`, what `Convex` and `Guidance` share; weights (K,) or (batch, K).

    Raises InputError where the weights are not what the composer takes.
    """

    weights: Tensor
    REQUIREMENT: ClassVar[str]  # what they must be, in words

    def __post_init__(self) -> None:
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        object.__setattr__(self, "weights", weights)
        if weights.ndim not in (1, 2) or weights.shape[-1] < 1:
            raise InputError(
                f"weights have shape {tuple(weights.shape)}; give (K,) or (batch, K), for at least one policy"
            )
        rows = weights.reshape(-1, weights.shape[-1])
        for row in rows[~self._valid(rows)][:1]:
            shown = ", ".join(f"{w:g}" for w in row.tolist())
            raise InputError(f"weights [{shown}] sum to {row.sum():g}; {self.REQUIREMENT}")

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """See `Composer`."""
        weights = self._effective(mask)
        rest = 1 - weights.sum(0)
        out = torch.where(rest.abs() < ROUNDING, 0, rest) * x
        for weight, member in zip(weights, denoised, strict=True):
            if member is not None:
                out = out + weight * member
        return out

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """See `Composer`; these weights are the same at every sigma."""
        return [bool(own.any()) for own in self._effective(mask)]

    def with_weights(self, weights: Tensor) -> Self:
        """See `HasWeights`."""
        return replace(self, weights=weights)

    def _effective(self, mask: Tensor) -> Tensor:
        """The weights that act, (K, rows, horizon, action)."""
        return self._effective_weights(
            self.weights.reshape(-1, self.weights.shape[-1]).T[:, :, None, None], mask[:, None]
        )

    @abstractmethod
    def _valid(self, weights: Tensor) -> Tensor:
        """Which rows of weights (rows, K) the composer takes."""

    @abstractmethod
    def _effective_weights(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Weights (K, rows, 1, 1) and mask (K, 1, horizon, action) -> those that act, (K, rows, horizon, action)."""


@dataclass(frozen=True)
class Mixture(Weighted):
    """What `Convex` and `Average` share: weights >= 0 that sum to one.

    Where members have no mask, the weights of the others are renormalised; if none of those has weight, they share.
    """

    REQUIREMENT = "convex weights are >= 0 and sum to 1; for signed weights take gpc.guide, or composer=guidance"

    def _valid(self, weights: Tensor) -> Tensor:
        return (weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() < 1e-6)

    def _effective_weights(self, weights: Tensor, mask: Tensor) -> Tensor:
        return _shares(weights, mask)


@final
@dataclass(frozen=True)
class Convex(Mixture):
    """`sum_i w_i denoised_i` with w >= 0, sum w = 1 (arXiv 2510.01068); weights (K,) or (batch, K)."""


@final
@dataclass(frozen=True)
class Average(Mixture):
    """The naive ensemble: every member samples a chunk on its own, and the chunks are averaged; weights as `Convex`.

    It is handed finished chunks in place of denoised actions (`gpc.inference.chunk.sample_chunk`). Between two ways round an
    obstacle lies the obstacle: what it is good for is to show what composing scores adds.
    """

    linear = False


@dataclass(frozen=True)
class Guidance(Weighted):
    """`x + sum_i w_i (denoised_i - x)` with signed weights; weights (K,) or (batch, K).

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) is (1 + g, -g) on a conditional and an unconditional
    policy, auto-guidance (Karras et al. 2024, arXiv 2406.02507) the same on a policy and a worse one. Where a member with
    weight has no mask nothing is guided: the members with positive weight are mixed, as by `Convex`.
    """

    REQUIREMENT = "guidance weights are finite and sum to more than 0"

    def _valid(self, weights: Tensor) -> Tensor:
        return weights.isfinite().all(-1) & (weights.sum(-1) > 0)

    def _effective_weights(self, weights: Tensor, mask: Tensor) -> Tensor:
        whole = ((weights == 0) | (mask > 0)).all(0)
        return torch.where(whole, weights, _shares(weights.clamp(min=0), mask))


def _shares(weights: Tensor, mask: Tensor) -> Tensor:
    """Weights >= 0 where members have an mask, ones where none of those has weight, made to sum to one."""
    own = weights * mask
    own = torch.where(own.sum(0) > 0, own, mask)
    return own / own.sum(0)
