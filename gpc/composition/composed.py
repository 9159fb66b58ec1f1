"""Composition: several policies in one coordinate, as one policy.

The members' schedules, predictions, inputs and normalisers may differ: each is a `Policy`, aligned to one coordinate
(`gpc.composition.align`); a composer (`gpc.composition.composers`) combines their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from threading import current_thread
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from gpc.composition.align import AlignedMember, align, masks, subset_spec, union_spec
from gpc.composition.chunks import SamplesChunks
from gpc.composition.composers import Composer, Convex, HasWeights
from gpc.errors import InputError
from gpc.policy.adapt import PolicyView, distinct
from gpc.policy.load import as_policy
from gpc.policy.observation import TASK
from gpc.policy.spec import (
    ActionSpec,
    Observation,
    ObservationSpec,
    Policy,
    is_linear,
    is_stochastic,
    policy_repr,
    prior_mean_of,
)
from gpc.score.denoiser import CheckFinite, Denoiser, computes_elsewhere, with_noise_keys
from gpc.score.keyed_noise import NoiseKeys
from gpc.score.noise import NoiseLevels, merge_levels

THREADED_BATCH = 16  # from this batch on a thread for each member pays (measured: two networks cost 1.07x of one at 64)
MEMBER_THREAD, MEMBER_THREADS = "gpc-member", 64


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads of members, which are made on demand."""

    def prepare() -> None:
        torch.set_grad_enabled(False)
        torch.set_num_threads(1)  # in this thread

    return ThreadPoolExecutor(MEMBER_THREADS, MEMBER_THREAD, prepare)


@dataclass(frozen=True)
class ComposedDenoiser:
    """The members' wrapped denoisers (`AlignedMember.wrap`) under one composer.

    Attributes:
        members: The policies in the common coordinate.
        denoisers: Their denoisers.
        composer: The composer.
        masks: Mask and active members by level.
        coverings: Masks by which members cover a level: levels share them.
    """

    members: Sequence[AlignedMember]
    denoisers: Sequence[Denoiser]
    composer: Composer
    masks: dict[float, tuple[Tensor, list[bool]]] = field(default_factory=dict, repr=False)
    coverings: dict[tuple[bool, ...], Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`.

        Rows of several levels cost one evaluation of the batch for each level.

        Raises:
            InputError: If no member was trained at a level, or if rows differ in level under a stochastic composer.
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

    def with_noise_keys(self, keys: NoiseKeys) -> ComposedDenoiser:
        """Hand noise keys to the members' denoisers, nested ones included."""
        return replace(self, denoisers=[with_noise_keys(denoiser, keys) for denoiser in self.denoisers])

    def _at(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Combine the members' outputs at one level, sigma ()."""
        mask, active = self._mask(float(sigma))
        calls = [(m, d) for m, d, on in zip(self.members, self.denoisers, active, strict=True) if on]
        nested = current_thread().name.startswith(MEMBER_THREAD)  # would wait for a thread of the pool that it occupies
        threaded = len(x) >= THREADED_BATCH and not nested
        waits: list[Callable[[], Tensor]] = []
        here = False  # the first member on the host runs in this thread, after all others have begun
        for member, denoiser in calls:
            if computes_elsewhere(denoiser):
                waits.append(member.start(denoiser, x, sigma))
            elif threaded and here:
                waits.append(_pool().submit(member.denoise, denoiser, x, sigma).result)
            else:
                waits.append(partial(member.denoise, denoiser, x, sigma))
                here = True
        results = iter([wait() for wait in waits])
        return self.composer(x, sigma, [next(results) if on else None for on in active], mask)

    def _mask(self, level: float) -> tuple[Tensor, list[bool]]:
        """Return the mask (K, horizon, action) at a level, and the active members."""
        if level not in self.masks:
            covered = tuple(m.levels.covers(level) for m in self.members)
            if covered not in self.coverings:
                self.coverings[covered] = masks(self.members) * torch.tensor(covered)[:, None, None]
            mask = self.coverings[covered]
            if not bool(mask.any(0).all()):
                trained = "; ".join(
                    f"{m.policy.name} {m.levels.sigma_min:.4g} to {m.levels.sigma_max:.4g}" for m in self.members
                )
                raise InputError(f"sigma={level:.4g} is outside what every policy was trained for ({trained})")
            self.masks[level] = mask, self.composer.active_members(mask, level)
        return self.masks[level]


@runtime_checkable
class Composition(Policy, Protocol):
    """Several policies under weights, as one policy.

    `ComposedPolicy` and `AveragedChunks` are such policies.
    """

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies."""

    @property
    def members(self) -> tuple[AlignedMember, ...]:
        """The policies in the common coordinate."""

    @property
    def composer(self) -> Composer:
        """Composer of the policies' denoised actions."""

    @property
    def weights(self) -> Tensor:
        """Weights (K,) or (batch, K); empty if the composer has none."""

    @property
    def convex(self) -> bool:
        """True if the weights are at least 0 with the sum 1."""

    def check_weights(self, weights: Sequence[float]) -> None:
        """Check weights (K,) of a candidate.

        Raises:
            InputError: If the weights are not what the composition takes, or the policies with weight lack a dimension.
        """

    def with_weights(self, weights: Tensor) -> Self:
        """Return the policies with any weight, under other weights (K,) or (batch, K).

        The weights are not checked again, see `check_weights`. A policy without weight is removed; number and order of
        the action dimensions stay. One-hot weights are the single policy on its own levels.

        Raises:
            InputError: If the policies that stay lack a dimension.
        """


@dataclass(frozen=True)
class ComposedPolicy:
    """Policies under a composer: itself a `Policy`. Use `compose` to make one.

    Attributes:
        policies: The members, under names that differ (`gpc.policy.adapt.distinct`).
        composer: The composer.
        common: The action coordinate, by default `union_spec(policies)`. `with_weights` sets it so that a subset keeps
            the dimensions and units of the full composition.

    Raises:
        InputError: If the policies or the weights do not fit.
    """

    policies: tuple[Policy, ...]
    composer: Composer
    common: ActionSpec | None = None

    def __post_init__(self) -> None:
        count = len(self.policies)
        if not count:
            raise InputError("a composition needs at least one policy")
        for policy in self.policies:
            if isinstance(policy, SamplesChunks):
                raise InputError(
                    f"{policy.name}: an average of chunks has no denoiser to compose; compose its policies"
                )
        object.__setattr__(self, "policies", tuple(distinct(self.policies)))
        if isinstance(self.composer, HasWeights):
            if not self.composer.weights.numel():
                equal = self.composer.with_weights(torch.full((count,), 1 / count, dtype=torch.float64))
                object.__setattr__(self, "composer", equal)
            _check_count(self.weights, count)
        _ = self.members, self.observations, self.levels

    def __repr__(self) -> str:
        return policy_repr(self, weighting_repr(self.composer))

    @cached_property
    def members(self) -> tuple[AlignedMember, ...]:
        """The policies in the common coordinate."""
        return align(self.policies, self.common or union_spec(self.policies))

    @property
    def name(self) -> str:
        """Names of the policies."""
        return " + ".join(p.name for p in self.policies)

    @property
    def fingerprint(self) -> str:
        """Fingerprints of the policies."""
        return " ".join(p.fingerprint for p in self.policies)

    @cached_property
    def actions(self) -> ActionSpec:
        """Common coordinate of the actions."""
        return self.members[0].common

    @cached_property
    def observations(self) -> ObservationSpec:
        """Every key that any policy reads, and the longest history."""
        return join_observations(self.policies)

    @cached_property
    def levels(self) -> NoiseLevels:
        """Range in which all active policies were trained; levels of the discrete ones."""
        active = self.composer.active_members(masks(self.members), None)
        return merge_levels([m.levels for m, on in zip(self.members, active, strict=True) if on])

    @property
    def stochastic(self) -> bool:
        """True if a composer follows a batch along the noisy steps of an SDE."""
        return self.composer.stochastic or any(map(is_stochastic, self.policies))

    @property
    def linear(self) -> bool:
        """True if the denoised action is a sum of the policies' denoised actions."""
        return self.composer.linear and all(map(is_linear, self.policies))

    @property
    def weights(self) -> Tensor:
        """Weights of the composer, (K,) or (batch, K); empty if it has none."""
        return self.composer.weights if isinstance(self.composer, HasWeights) else torch.empty(0)

    @property
    def convex(self) -> bool:
        """True if the composer has convex weights."""
        return isinstance(self.composer, HasWeights) and self.composer.convex

    def check_weights(self, weights: Sequence[float]) -> None:
        """Check weights (K,) of a candidate, see `Composition`."""
        row = torch.tensor(weights, dtype=torch.float64)
        _check_count(row, len(self.policies))
        self._weighted().check_weights(row)
        self.with_weights(row)

    def with_weights(self, weights: Tensor) -> ComposedPolicy:
        """Return the policies with any weight under other weights, see `Composition`."""
        composer, weights = self._weighted(), weights.double()
        _check_count(weights, len(self.policies))
        staying = (weights != 0).reshape(-1, len(self.policies)).any(0).nonzero().flatten().tolist()
        policies = tuple(self.policies[k] for k in staying)
        return ComposedPolicy(
            policies, composer.with_weights(weights[..., staying]), subset_spec(policies, self.actions)
        )

    def with_policies(self, policies: Sequence[Policy]) -> ComposedPolicy:
        """Return the composition with views of its policies, in the same coordinate."""
        return replace(self, policies=tuple(policies))

    def tile(self, count: int) -> ComposedPolicy:
        """Return the composition for a batch that is repeated `count` times."""
        if isinstance(self.composer, HasWeights) and self.weights.ndim == 2:
            return replace(self, composer=self.composer.with_weights(self.weights.repeat(count, 1)))
        return self

    def combine_chunks(self, chunks: Sequence[Tensor], sigma: float = 0.0) -> Tensor:
        """Combine finished chunks of the policies with the composer's weights at `sigma`.

        Args:
            chunks: One for each policy, (batch, its horizon, its action), in its coordinate.
            sigma: Noise level.

        Returns:
            Chunks (batch, horizon, action) in the common coordinate.
        """
        common = [member.to_common(chunk) for member, chunk in zip(self.members, chunks, strict=True)]
        mask = masks(self.members)
        mean = (torch.stack(common) * mask[:, None]).sum(0) / mask.sum(0)  # as there is no noisy x for signed weights
        return self.composer(mean, mean.new_tensor(sigma), common, mask)

    def prior_mean(self, observation: Observation) -> Tensor | None:
        """Combine the policies' prior means as their outputs at the largest sigma."""
        means = [prior_mean_of(policy, observation) for policy in self.policies]
        batch = next((len(mean) for mean in means if mean is not None), None)
        if batch is None:
            return None
        chunks = []
        for policy, mean in zip(self.policies, means, strict=True):
            zeros = torch.zeros(batch, policy.actions.horizon, policy.actions.dim, dtype=torch.float64)
            chunks.append(zeros if mean is None else zeros + mean)
        return self.combine_chunks(chunks, self.levels.sigma_max)

    def condition(self, observation: Observation) -> ComposedDenoiser:
        """Encode one batch of observations, each policy the keys and steps that it reads."""
        denoisers = []
        for member in self.members:
            policy = member.policy
            denoiser = policy.condition(policy.observations.read(observation))
            denoisers.append(member.wrap(CheckFinite(denoiser, policy.name)))
        return ComposedDenoiser(self.members, denoisers, self.composer.start())

    def _weighted(self) -> HasWeights:
        if not isinstance(self.composer, HasWeights):
            raise InputError(f"{type(self.composer).__name__} takes no weights")
        return self.composer


def _check_count(weights: Tensor, policies: int) -> None:
    if weights.shape[-1] != policies:
        raise InputError(f"{weights.shape[-1]} weights for {policies} policies; give one each")


def weighting_repr(composer: Composer) -> str:
    """Return a composer and its weights, as "Convex [0.4, 0.6]"."""
    weights = composer.weights if isinstance(composer, HasWeights) else torch.empty(0)
    numbers = "[" + ", ".join(f"{w:g}" for w in weights.tolist()) + "]" if weights.ndim == 1 else f"{len(weights)} rows"
    return f"{type(composer).__name__} {numbers}"


def join_observations(policies: Sequence[Policy]) -> ObservationSpec:
    """Return all observation keys of policies, and the longest history.

    Raises:
        InputError: If two policies read a key in different shapes, or only one of them as an image.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    images: dict[str, bool] = {}
    for policy in policies:
        spec = policy.observations
        for key, shape in spec.shapes.items():
            if key == TASK:  # a text fits into the longest
                shapes[key] = max(shape, shapes.get(key, shape))
            elif shapes.setdefault(key, shape) != shape:
                raise InputError(f"{policy.name} reads {key!r} as {shape}, another policy as {shapes[key]}")
            if images.setdefault(key, key in spec.images) != (key in spec.images):
                raise InputError(f"{policy.name} and another policy read {key!r} as an image and as numbers")
    steps = max(policy.observations.n_obs_steps for policy in policies)
    return ObservationSpec(shapes, steps, [key for key, image in images.items() if image])


def compose(policies: Sequence[Policy | str], how: Composer | Sequence[float] | Tensor | None = None) -> ComposedPolicy:
    """Compose several policies into one policy.

    Args:
        policies: The members, or their names, as for `gpc.load_policy`.
        how: A composer, e.g. `Guidance([1.5, -0.5])`, or the weights of a convex combination, (K,) or (batch, K); by
            default equal weights.

    Raises:
        InputError: If the weights or the policies do not fit.
    """
    if isinstance(policies, str):
        raise InputError(f"policies={policies!r} must be a list, as in [{policies!r}]")
    composer = how if callable(how) else Convex(() if how is None else how)
    return ComposedPolicy(tuple(map(as_policy, policies)), composer)


def as_composition(policy: Policy) -> Composition:
    """Return a policy as a composition with weights, for rollouts.

    A policy that has no weights becomes the only member of a composition, which is that policy bit for bit.
    """
    return policy if isinstance(policy, Composition) and policy.weights.numel() else compose([policy])


def leaves(policy: Policy) -> Iterator[Policy]:
    """Yield the policies in a policy; views and compositions are opened."""
    if isinstance(policy, PolicyView):
        yield from leaves(policy.policy)
    elif isinstance(policy, Composition):
        for member in policy.policies:
            yield from leaves(member)
    else:
        yield policy
