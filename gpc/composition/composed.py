"""Composition: several policies, seen in one coordinate, as one policy.

A convex combination of scores at one (x, sigma) is the same convex combination of `denoised` (General Policy
Composition, Cao et al., arXiv 2510.01068); guidance is the same sum with signed weights. The members' own schedules,
predictions, inputs and normalisers do not matter here: each is a `Policy`, aligned to one coordinate
(`gpc.composition.align`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from threading import current_thread
from typing import TypeGuard

import torch
from torch import Tensor

from gpc.composition.align import AlignedMember, align, join_observations, masks, subset_spec, union_spec
from gpc.composition.composers import Average, Composer, Convex, Guidance, HasWeights
from gpc.composition.noise_matching import NoiseMatched
from gpc.composition.superposition import And, Or
from gpc.errors import InputError
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec, Policy, centre_of
from gpc.score.denoiser import CheckFinite, Denoiser
from gpc.score.noise import NoiseLevels, merge_levels

Given = Sequence[float] | Tensor | None
"""Weights as users give them."""

THREADED_BATCH = 16  # from this batch on a thread for each member pays (measured: two networks cost 1.07x of one at 64)


MEMBER_THREAD = "gpc-member"


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=MEMBER_THREAD)


@dataclass(frozen=True)
class ComposedDenoiser:
    """The members' denoisers, each prepared by its `AlignedMember`, under one composer."""

    members: Sequence[AlignedMember]
    denoisers: Sequence[Denoiser]
    composer: Composer
    plans: dict[float, tuple[Tensor, list[bool]]] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`. Rows of several levels cost one evaluation of the batch for each level.

        Raises:
            InputError: no member was trained at a level, or rows differ in level under a composer that follows a batch.
        """
        levels = dict.fromkeys(sigma.flatten().tolist())
        if len(levels) == 1:
            return self._at(x, sigma.flatten()[0])
        if self.composer.stochastic:
            raise InputError(
                "a composer that follows log-densities (or, and) needs one noise level for all rows of a batch"
            )
        out = torch.empty_like(x)
        for level in levels:
            out[sigma == level] = self._at(x, sigma.new_tensor(level))[sigma == level]
        return out

    def _at(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Combine the members' outputs at one level, sigma ()."""
        mask, needed = self._plan(float(sigma))
        calls = [(m, d) for m, d, on in zip(self.members, self.denoisers, needed, strict=True) if on]
        nested = current_thread().name.startswith(MEMBER_THREAD)  # would wait for a thread of the pool that it occupies
        threaded = calls[1:] if len(x) >= THREADED_BATCH and not nested else []  # the first runs here
        jobs = [_pool(len(self.members)).submit(m.denoise, d, x, sigma) for m, d in threaded]
        found = [m.denoise(d, x, sigma) for m, d in calls[: len(calls) - len(jobs)]]
        results = iter([*found, *(job.result() for job in jobs)])
        return self.composer(x, sigma, [next(results) if on else None for on in needed], mask)

    def keyed(self, noise: Tensor) -> ComposedDenoiser:
        """The same, for the chunks that start with this noise (batch, horizon, action): see `NoiseMatched`."""

        def own(member: AlignedMember, denoiser: Denoiser) -> Denoiser:
            if not isinstance(denoiser, NoiseMatched):
                return denoiser
            name = member.policy.name.encode()
            return replace(denoiser, rows=[row.tobytes() + name for row in noise.cpu().numpy()])

        return replace(self, denoisers=[own(m, d) for m, d in zip(self.members, self.denoisers, strict=True)])

    def _plan(self, level: float) -> tuple[Tensor, list[bool]]:
        """Who has an mask where at this level (K, horizon, action), and who is needed; kept, as some solvers call twice."""
        if level not in self.plans:
            covered = [m.levels.covers(level) for m in self.members]
            mask = masks(self.members) * torch.tensor(covered)[:, None, None]
            if not bool(mask.any(0).all()):
                trained = "; ".join(
                    f"{m.policy.name} {m.levels.sigma_min:.4g} to {m.levels.sigma_max:.4g}" for m in self.members
                )
                raise InputError(f"sigma={level:.4g} is outside what every policy was trained for ({trained})")
            self.plans[level] = mask, self.composer.active_members(mask, level)
        return self.plans[level]


@dataclass(frozen=True)
class ComposedPolicy:
    """Policies under a composer: itself a `Policy`. Use `compose` to build one.

    Raises InputError at construction where the policies do not fit: the message says which and why. `common` is the coordinate
    where it is not the policies' own (`union_spec`): that of a composition which they are a part of.
    """

    policies: tuple[Policy, ...]
    composer: Composer
    common: ActionSpec | None = None

    def __post_init__(self) -> None:
        if isinstance(self.composer, HasWeights):
            count = self.composer.weights.shape[-1]
            if count != len(self.policies):
                raise InputError(f"{count} weights for {len(self.policies)} policies; give one each")
        _ = self.members, self.observations, self.levels

    @cached_property
    def members(self) -> tuple[AlignedMember, ...]:
        """The policies in the common coordinate."""
        return align(self.policies, self.common or union_spec(self.policies))

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
        """The common coordinate."""
        return self.members[0].common

    @cached_property
    def observations(self) -> ObservationSpec:
        """Every key that any member reads."""
        return join_observations(self.policies)

    @cached_property
    def levels(self) -> NoiseLevels:
        """The range in which all members with a say were trained; the discrete members' levels."""
        needed = self.composer.active_members(masks(self.members), None)
        return merge_levels([m.levels for m, on in zip(self.members, needed, strict=True) if on])

    def with_weights(self, weights: Tensor) -> ComposedPolicy:
        """The policies with any weight, under other weights of the same composer, (K,) or (batch, K).

        A policy without weight leaves altogether, but dimensions stay as they are: see `subset_spec`. One-hot weights are
        the parent itself, on its own levels. Raises InputError where the composer takes no weights, or where those
        that stay lack a dimension.
        """
        if not isinstance(self.composer, HasWeights):
            raise InputError(f"{type(self.composer).__name__} takes no weights")
        kept = (weights != 0).reshape(-1, len(self.policies)).any(0).nonzero().flatten().tolist()
        policies = tuple(self.policies[k] for k in kept)
        composer = self.composer.with_weights(weights[..., kept])
        return ComposedPolicy(policies, composer, subset_spec(policies, self.actions))

    def combine_chunks(self, chunks: Sequence[Tensor], sigma: float = 0.0) -> Tensor:
        """Chunks of the members (batch, horizon, action), in their own coordinates, under the composer as it is at sigma."""
        said = [member.to_common(own) for member, own in zip(self.members, chunks, strict=True)]
        mask = masks(self.members)
        middle = (torch.stack(said) * mask[:, None]).sum(0) / mask.sum(0)  # what signed weights lead away from
        return self.composer(middle, middle.new_tensor(sigma), said, mask)

    def centre(self, observation: Observation) -> Tensor | None:
        """See `gpc.policy.spec.Centred`: the members' centres, composed as their denoised actions are at the largest sigma."""
        found = [centre_of(policy, observation) for policy in self.policies]
        batch = next((len(centre) for centre in found if centre is not None), None)
        if batch is None:
            return None
        chunks = []
        for policy, centre in zip(self.policies, found, strict=True):
            zeros = torch.zeros(batch, policy.actions.horizon, policy.actions.dim, dtype=torch.float64)
            chunks.append(zeros if centre is None else zeros + centre)
        return self.combine_chunks(chunks, self.levels.sigma_max)

    def condition(self, observation: Observation) -> ComposedDenoiser:
        """Each member encodes the observation steps that it reads."""
        self.observations.check(observation)
        denoisers = []
        for member in self.members:
            policy, spec = member.policy, member.policy.observations
            seen = {key: observation[key][:, -spec.n_obs_steps :] for key in spec.shapes}
            denoisers.append(member.wrap(CheckFinite(policy.condition(seen), policy.name)))
        return ComposedDenoiser(self.members, denoisers, self.composer.start())


def compose(policies: Sequence[Policy], how: Composer | Given = None) -> ComposedPolicy:
    """Compose several policies into one policy.

    Args:
        policies: The members.
        how: A composer, or the weights (K,) or (batch, K) of a convex combination: at least 0, with the sum 1; by
            default equal.

    Raises:
        InputError: If the weights or the policies do not fit.
    """
    composer = how if callable(how) else Convex(_rows(how, len(policies)))
    return ComposedPolicy(tuple(policies), composer)


def either(policies: Sequence[Policy], weights: Given = None, *, temperature: float = 1.0) -> ComposedPolicy:
    """Chunks that one policy or another finds likely, as a policy; see `Or`. To be sampled with noise (`sampler=ancestral`).

    `weights`: (K,) or (batch, K), convex: the share of each policy. Raises InputError where weights or policies do not fit.
    """
    return ComposedPolicy(tuple(policies), Or(_rows(weights, len(policies)), temperature))


def both(policies: Sequence[Policy], weights: Given = None) -> ComposedPolicy:
    """Chunks that all policies find equally likely, as a policy; see `And`. To be sampled with noise (`sampler=ancestral`).

    `weights`: (K,) or (batch, K), convex: the proportion of the densities. Raises InputError where weights or policies do not fit.
    """
    return ComposedPolicy(tuple(policies), And(_rows(weights, len(policies))))


def average(policies: Sequence[Policy], weights: Given = None) -> ComposedPolicy:
    """The policies' own chunks, averaged, as a policy: the naive ensemble, to compare with; see `Average`.

    `weights`: (K,) or (batch, K), convex. Raises InputError where weights or policies do not fit.
    """
    return ComposedPolicy(tuple(policies), Average(_rows(weights, len(policies))))


def guide(policies: Sequence[Policy], weights: Given = None) -> ComposedPolicy:
    """Several policies' scores under signed weights, as a policy: (1 + g, -g) guides the first away from the second.

    `weights`: (K,) or (batch, K), summing to more than 0; see `Guidance`. Raises InputError where weights or policies do
    not fit.
    """
    return ComposedPolicy(tuple(policies), Guidance(_rows(weights, len(policies))))


def _rows(weights: Given, policies: int) -> Tensor:
    """The weights as a tensor; equal ones where none are given."""
    if weights is None:
        weights = torch.full((policies,), 1 / max(policies, 1), dtype=torch.float64)
    return torch.as_tensor(weights, dtype=torch.float64)


def averages(policy: Policy) -> TypeGuard[ComposedPolicy]:
    """Whether a policy's members sample chunks of their own."""
    return isinstance(policy, ComposedPolicy) and isinstance(policy.composer, Average) and len(policy.policies) > 1
