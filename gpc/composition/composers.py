"""Composers: how the members' denoised actions become one.

A convex combination of scores at one (x, sigma) is the same convex combination of `denoised` (General Policy
Composition, Cao et al., arXiv 2510.01068); guidance is the same sum with signed weights. A composer of your own is any
object with the attributes of `Composer`; `gpc.compose` takes it as it takes these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from gpc.errors import InputError

ROUNDING = 1e-9  # |1 - sum(w)| below this counts as 0, so that one-hot weights return one policy's output bit for bit


class Composer(Protocol):
    """Combines the members' denoised actions at one (x, sigma)."""

    @property
    def stochastic(self) -> bool:
        """True if it follows a batch along the steps of an SDE (`sampler=ancestral`)."""

    @property
    def linear(self) -> bool:
        """True if the result is a sum of the outputs, which a cost can steer."""

    def start(self) -> Composer:
        """Return the composer for a new batch of chunks: itself if it has no state."""

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Combine the members' outputs.

        Args:
            x: Noisy chunks (batch, horizon, action).
            sigma: Noise level, ().
            denoised: One output for each member, like x; None for a member that is not active.
            mask: (K, horizon, action): 1 for the entries that a member contributes to at this sigma.

        Returns:
            The denoised action, like x.
        """

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """Return which members have influence at sigma (None: at any).

        Args:
            mask: (K, horizon, action), as for a call.
            sigma: Noise level.
        """


@runtime_checkable
class HasWeights(Composer, Protocol):
    """A composer with one weight for each member."""

    @property
    def weights(self) -> Tensor:
        """(K,) or (batch, K), float64; empty for equal weights."""

    @property
    def convex(self) -> bool:
        """True if the weights are at least 0 with the sum 1, as in a search."""

    def check_weights(self, weights: Tensor) -> None:
        """Check weights (K,) or (batch, K), float64, once, when they are made.

        Raises:
            InputError: If they are not what the composer takes.
        """

    def with_weights(self, weights: Tensor) -> HasWeights:
        """Return the composer under other weights, which were checked before."""


@dataclass(frozen=True, init=False, eq=False)
class WithWeights(ABC):
    """Base of composers with weights (K,) or (batch, K), by default equal.

    Raises:
        InputError: If the weights are not what the composer takes.
    """

    weights: Tensor
    REQUIREMENT: ClassVar[str]  # on the weights, for the error
    convex: ClassVar[bool]

    def __init__(self, weights: Sequence[float] | Tensor = ()) -> None:
        object.__setattr__(self, "weights", torch.as_tensor(weights, dtype=torch.float64))
        self.check_weights(self.weights)

    def check_weights(self, weights: Tensor) -> None:
        """Check weights, see `HasWeights`."""
        if weights.ndim not in (1, 2) or (weights.ndim == 2 and not weights.numel()):
            raise InputError(
                f"weights have shape {tuple(weights.shape)}; give (K,) or (batch, K), for at least one policy"
            )
        rows = weights.reshape(-1, weights.shape[-1]) if weights.numel() else weights.new_zeros(0, 1)
        for row in rows[~self._valid(rows)][:1]:
            numbers = ", ".join(f"{w:g}" for w in row.tolist())
            raise InputError(f"weights [{numbers}] sum to {row.sum():g}; {self.REQUIREMENT}")

    def with_weights(self, weights: Tensor) -> Self:
        """Return the composer under other weights, see `HasWeights`."""
        other = copy(self)
        object.__setattr__(other, "weights", weights)
        return other

    @abstractmethod
    def _valid(self, weights: Tensor) -> Tensor:
        """Return which rows of weights (rows, K) the composer takes, bool (rows,)."""


class ConvexWeights(WithWeights):
    """Base of composers whose weights are at least 0 with the sum 1."""

    REQUIREMENT = "convex weights are >= 0 and sum to 1; signed weights need gpc.Guidance, or composer=guidance"
    convex = True

    def _valid(self, weights: Tensor) -> Tensor:
        return (weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() < 1e-6)


class _Effective(NamedTuple):
    """Weights of the members (K, rows, horizon, action), of x, and who has any."""

    weights: Tensor
    rest: Tensor
    active: list[bool]


class LinearComposer(WithWeights):
    """Base of `x + sum_i w_i (denoised_i - x)`: `Convex` and `Guidance`."""

    stochastic: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    _last: ClassVar[tuple[Any, Any, Any]] = (None, None, None)  # weights, mask and what `_effective` made of them

    def start(self) -> Self:
        """Return the composer itself; it has no state."""
        return self

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], mask: Tensor) -> Tensor:
        """Combine the members' outputs, see `Composer`."""
        weights, rest, _ = self._effective(mask)
        out = rest * x
        for weight, member in zip(weights, denoised, strict=True):
            if member is not None:
                out = out + weight * member
        return out

    def active_members(self, mask: Tensor, sigma: float | None) -> list[bool]:
        """Return which members have weight; the weights are the same at every sigma."""
        return self._effective(mask).active

    def _effective(self, mask: Tensor) -> _Effective:
        """Return the weights of each entry.

        The levels of a chunk share a mask, so the last result is kept.
        """
        effective: _Effective
        weights, last_mask, effective = self._last
        if weights is not self.weights or last_mask is not mask:
            columns = self.weights.reshape(-1, len(mask)).T[:, :, None, None]
            entries = self._effective_weights(columns, mask[:, None])
            rest = 1 - entries.sum(0)
            rest = torch.where(rest.abs() < ROUNDING, 0, rest)
            effective = _Effective(entries, rest, [bool(weight.any()) for weight in entries])
            object.__setattr__(self, "_last", (self.weights, mask, effective))
        return effective

    @abstractmethod
    def _effective_weights(self, weights: Tensor, mask: Tensor) -> Tensor:
        """Apply a mask (K, 1, horizon, action) to weights (K, rows, 1, 1)."""


class Convex(ConvexWeights, LinearComposer):
    """`sum_i w_i denoised_i` with w >= 0 and sum 1 (arXiv 2510.01068).

    At entries that a member does not contribute to, the weights of the others are renormalised. If none of these has
    weight, they share equally.
    """

    def _effective_weights(self, weights: Tensor, mask: Tensor) -> Tensor:
        return _shares(weights, mask)


class Guidance(LinearComposer):
    """`x + sum_i w_i (denoised_i - x)` with signed weights, of sum above 0.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) is (1 + g, -g) on a conditional and an
    unconditional policy, auto-guidance (Karras et al. 2024, arXiv 2406.02507) the same on a policy and a worse one. At
    entries that a member with weight does not contribute to there is no guidance: the members with positive weight are
    mixed as by `Convex`.
    """

    REQUIREMENT = "guidance weights are finite and sum to more than 0"
    convex = False

    def _valid(self, weights: Tensor) -> Tensor:
        return weights.isfinite().all(-1) & (weights.sum(-1) > 0)

    def _effective_weights(self, weights: Tensor, mask: Tensor) -> Tensor:
        full = ((weights == 0) | (mask > 0)).all(0)
        return torch.where(full, weights, _shares(weights.clamp(min=0), mask))


def _shares(weights: Tensor, mask: Tensor) -> Tensor:
    """Normalise masked weights >= 0 over the members; all zeros become equal."""
    masked = weights * mask
    masked = torch.where(masked.sum(0) > 0, masked, mask)
    return masked / masked.sum(0)
