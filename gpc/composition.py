"""Composition: several policies, seen in one coordinate, as one policy.

A convex combination of scores at one (x, sigma) is the same convex combination of `denoised` (General Policy
Composition, Cao et al., arXiv 2510.01068); guidance is the same sum with signed weights. The members' own schedules,
predictions, inputs and normalisers do not matter here: each is a `Policy`, aligned to the first one's normaliser and to the
union of all chunks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from gpc.align import Aligned, align, join_observations
from gpc.denoise import Denoiser, Finite
from gpc.errors import InputError
from gpc.noise import NoiseLevels, merge_levels
from gpc.policy import ActionSpec, Observation, ObservationSpec, Policy

THREADED_BATCH = 16  # from this batch on a thread for each member pays (measured: two networks cost 1.07x of one at 64)
ROUNDING = 1e-9  # weights that sum to one but for rounding leave nothing of x, so that one-hot weights are the parent bit for bit


class Composer(Protocol):
    """Combines the members' denoised actions at one (x, sigma)."""

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], opinion: Tensor) -> Tensor:
        """Combine.

        x (batch, horizon, action); sigma (); denoised[k] like x, or None where member k is not needed; opinion
        (K, horizon): 1 where member k's chunk has this step and was trained at this sigma.
        """

    def needs(self, opinion: Tensor) -> list[bool]:
        """Which members have any influence, given their opinions (K, horizon); the others are not evaluated."""


@dataclass(frozen=True)
class Weighted(ABC):
    """`x + sum_i w_i (denoised_i - x)`, what `Convex` and `Guidance` share; weights (K,) or (batch, K).

    Raises InputError where the weights are not what the composer takes.
    """

    weights: Tensor
    wanted: ClassVar[str]  # what they must be, in words

    def __post_init__(self) -> None:
        weights = torch.as_tensor(self.weights, dtype=torch.float64)
        object.__setattr__(self, "weights", weights)
        if weights.ndim not in (1, 2) or weights.shape[-1] < 1:
            raise InputError(
                f"weights have shape {tuple(weights.shape)}; give (K,) or (batch, K), for at least one policy"
            )
        rows = weights.reshape(-1, weights.shape[-1])
        for row in rows[~self._fits(rows)][:1]:
            shown = ", ".join(f"{w:g}" for w in row.tolist())
            raise InputError(f"weights [{shown}] sum to {row.sum():g}; {self.wanted}")

    def __call__(self, x: Tensor, sigma: Tensor, denoised: Sequence[Tensor | None], opinion: Tensor) -> Tensor:
        """See `Composer`."""
        weights = self._effective(opinion)
        rest = 1 - weights.sum(0)
        out = torch.where(rest.abs() < ROUNDING, 0, rest).unsqueeze(-1) * x
        for weight, member in zip(weights.unsqueeze(-1), denoised, strict=True):
            if member is not None:
                out = out + weight * member
        return out

    def needs(self, opinion: Tensor) -> list[bool]:
        """See `Composer`."""
        return [bool(own.any()) for own in self._effective(opinion)]

    def _effective(self, opinion: Tensor) -> Tensor:
        """The weights that act, (K, rows, horizon)."""
        return self._act(self.weights.reshape(-1, self.weights.shape[-1]).T[:, :, None], opinion[:, None, :])

    @abstractmethod
    def _fits(self, weights: Tensor) -> Tensor:
        """Which rows of weights (rows, K) the composer takes."""

    @abstractmethod
    def _act(self, weights: Tensor, opinion: Tensor) -> Tensor:
        """Weights (K, rows, 1) and opinion (K, 1, horizon) -> the weights that act, (K, rows, horizon)."""


@dataclass(frozen=True)
class Convex(Weighted):
    """`sum_i w_i denoised_i` with w >= 0, sum w = 1 (arXiv 2510.01068); weights (K,) or (batch, K).

    Where members have no opinion, the weights of the others are renormalised; if none of those has weight, they share.
    """

    wanted = "convex weights are >= 0 and sum to 1; for signed weights take gpc.guide, or composer=guidance"

    def _fits(self, weights: Tensor) -> Tensor:
        return (weights >= 0).all(-1) & ((weights.sum(-1) - 1).abs() < 1e-6)

    def _act(self, weights: Tensor, opinion: Tensor) -> Tensor:
        return _shares(weights, opinion)


@dataclass(frozen=True)
class Guidance(Weighted):
    """`x + sum_i w_i (denoised_i - x)` with signed weights; weights (K,) or (batch, K).

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) is (1 + g, -g) on a conditional and an unconditional
    policy, auto-guidance (Karras et al. 2024, arXiv 2406.02507) the same on a policy and a worse one. Where a member with
    weight has no opinion nothing is guided: the members with positive weight are mixed, as by `Convex`.
    """

    wanted = "guidance weights are finite and sum to more than 0"

    def _fits(self, weights: Tensor) -> Tensor:
        return weights.isfinite().all(-1) & (weights.sum(-1) > 0)

    def _act(self, weights: Tensor, opinion: Tensor) -> Tensor:
        whole = ((weights == 0) | (opinion > 0)).all(0)
        return torch.where(whole, weights, _shares(weights.clamp(min=0), opinion))


def _shares(weights: Tensor, opinion: Tensor) -> Tensor:
    """Weights >= 0 where members have an opinion, ones where none of those has weight, made to sum to one."""
    own = weights * opinion
    own = torch.where(own.sum(0) > 0, own, opinion)
    return own / own.sum(0)


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gpc-member")


@dataclass(frozen=True)
class ComposedDenoiser:
    """The members' denoisers under one composer."""

    members: Sequence[Aligned]
    denoisers: Sequence[Denoiser]
    composer: Composer
    horizon: int
    plans: dict[tuple[bool, ...], tuple[Tensor, list[bool]]] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`; sigma is one level for the whole batch."""
        level = float(sigma.max())
        opinion, needed = self._plan(level)
        calls = [(m, d) for m, d, on in zip(self.members, self.denoisers, needed, strict=True) if on]
        threaded = calls[1:] if len(x) >= THREADED_BATCH else []  # the first runs here
        jobs = [_pool(len(self.members)).submit(m.denoise, d, x, sigma) for m, d in threaded]
        found = [m.denoise(d, x, sigma) for m, d in calls[: len(calls) - len(jobs)]]
        results = iter([*found, *(job.result() for job in jobs)])
        return self.composer(x, sigma, [next(results) if on else None for on in needed], opinion)

    def _plan(self, level: float) -> tuple[Tensor, list[bool]]:
        """Who has an opinion on which step at this level (K, horizon), and who is needed; kept for the levels that follow."""
        covered = tuple(m.levels.covers(level) for m in self.members)
        if covered not in self.plans:
            opinion = torch.stack([m.chunk(self.horizon) * on for m, on in zip(self.members, covered, strict=True)])
            if not bool(opinion.any(0).all()):
                trained = "; ".join(
                    f"{m.policy.name} {m.levels.sigma_min:.4g} to {m.levels.sigma_max:.4g}" for m in self.members
                )
                raise InputError(f"sigma={level:.4g} is outside what every policy was trained for ({trained})")
            self.plans[covered] = opinion, self.composer.needs(opinion)
        return self.plans[covered]


@dataclass(frozen=True)
class ComposedPolicy:
    """Policies under a composer: itself a `Policy`. Use `compose` to build one.

    Raises InputError at construction where the policies do not fit: the message says which and why.
    """

    policies: tuple[Policy, ...]
    composer: Composer

    def __post_init__(self) -> None:
        if isinstance(self.composer, Weighted) and self.composer.weights.shape[-1] != len(self.policies):
            raise InputError(
                f"{self.composer.weights.shape[-1]} weights for {len(self.policies)} policies; give one each"
            )
        _ = self.members, self.observations, self.levels

    @cached_property
    def members(self) -> tuple[Aligned, ...]:
        """The policies in the common coordinate."""
        return align(self.policies)

    @property
    def name(self) -> str:
        """The members' names."""
        return " + ".join(p.name for p in self.policies)

    @property
    def fingerprint(self) -> str:
        """The members' fingerprints."""
        return " ".join(p.fingerprint for p in self.policies)

    @cached_property
    def actions(self) -> ActionSpec:
        """The first policy's normaliser over the union of all chunks."""
        first = self.policies[0].actions
        start = min(p.actions.start for p in self.policies)
        end = max(p.actions.start + p.actions.horizon for p in self.policies)
        return replace(first, start=start, horizon=end - start)

    @cached_property
    def observations(self) -> ObservationSpec:
        """Every key that any member reads."""
        return join_observations(self.policies)

    @cached_property
    def levels(self) -> NoiseLevels:
        """The range in which all members with a say were trained; the discrete members' levels."""
        opinion = torch.stack([m.chunk(self.actions.horizon) for m in self.members])
        needed = self.composer.needs(opinion)
        return merge_levels([m.levels for m, on in zip(self.members, needed, strict=True) if on])

    def weighted(self, weights: Tensor) -> ComposedPolicy:
        """The policies with any weight, under other weights of the same composer, (K,) or (batch, K).

        A policy without weight leaves altogether: one-hot weights are the parent itself, in its own coordinate, on its
        own levels. Raises InputError where the composer takes no weights.
        """
        if not isinstance(self.composer, Weighted):
            raise InputError(f"{type(self.composer).__name__} takes no weights")
        kept = [k for k in range(len(self.policies)) if bool((weights[..., k] != 0).any())]
        return ComposedPolicy(tuple(self.policies[k] for k in kept), replace(self.composer, weights=weights[..., kept]))

    def condition(self, observation: Observation) -> ComposedDenoiser:
        """Each member encodes the observation steps that it reads."""
        self.observations.check(observation)
        denoisers = []
        for policy in self.policies:
            spec = policy.observations
            seen = {key: observation[key][:, -spec.n_obs_steps :] for key in spec.shapes}
            denoisers.append(Finite(policy.condition(seen), policy.name))
        return ComposedDenoiser(self.members, denoisers, self.composer, self.actions.horizon)


def compose(policies: Sequence[Policy], weights: Sequence[float] | Tensor) -> ComposedPolicy:
    """The convex combination of several policies' scores, as a policy.

    `weights`: (K,) or (batch, K), >= 0, summing to 1. Raises InputError where weights or policies do not fit.
    """
    return ComposedPolicy(tuple(policies), Convex(torch.as_tensor(weights, dtype=torch.float64)))


def guide(policies: Sequence[Policy], weights: Sequence[float] | Tensor) -> ComposedPolicy:
    """Several policies' scores under signed weights, as a policy: (1 + g, -g) guides the first away from the second.

    `weights`: (K,) or (batch, K), summing to more than 0; see `Guidance`. Raises InputError where weights or policies do
    not fit.
    """
    return ComposedPolicy(tuple(policies), Guidance(torch.as_tensor(weights, dtype=torch.float64)))
