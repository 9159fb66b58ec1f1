"""The naive ensemble: every policy samples a chunk of its own, and the chunks are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from torch import Tensor

from gpc.composition.align import AlignedMember
from gpc.composition.chunks import ChunkSampler
from gpc.composition.composed import ComposedPolicy, compose, weighting_repr
from gpc.composition.composers import Composer
from gpc.composition.inpainting import InpaintTarget
from gpc.errors import InputError
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec, Policy, policy_repr
from gpc.score.noise import NoiseLevels


@dataclass(frozen=True, init=False)
class AveragedChunks:
    """The average of the policies' own chunks, as a policy; weights as `Convex`.

    Between two ways round an obstacle lies the obstacle: the average shows what the composition of scores adds.

    Raises:
        InputError: If the weights or the policies do not fit.
    """

    composed: ComposedPolicy  # combines the chunks
    linear: ClassVar[bool] = False

    def __init__(self, policies: Sequence[Policy], weights: Sequence[float] | Tensor | None = None) -> None:
        object.__setattr__(self, "composed", compose(policies, weights))

    def __repr__(self) -> str:
        return policy_repr(self, weighting_repr(self.composer))

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The policies."""
        return self.composed.policies

    @property
    def members(self) -> tuple[AlignedMember, ...]:
        """The policies in the common coordinate."""
        return self.composed.members

    @property
    def name(self) -> str:
        """Names of the policies."""
        return self.composed.name

    @property
    def fingerprint(self) -> str:
        """Fingerprints of the policies."""
        return self.composed.fingerprint

    @property
    def actions(self) -> ActionSpec:
        """Common coordinate of the actions."""
        return self.composed.actions

    @property
    def observations(self) -> ObservationSpec:
        """Every key that any policy reads, and the longest history."""
        return self.composed.observations

    @property
    def levels(self) -> NoiseLevels:
        """Range in which all policies with weight were trained."""
        return self.composed.levels

    @property
    def composer(self) -> Composer:
        """Combines the chunks."""
        return self.composed.composer

    @property
    def weights(self) -> Tensor:
        """Weights of the average, (K,) or (batch, K)."""
        return self.composed.weights

    @property
    def convex(self) -> bool:
        """True."""
        return True

    @property
    def stochastic(self) -> bool:
        """True if a policy must be sampled along an SDE."""
        return self.composed.stochastic

    @property
    def n_samples(self) -> int:
        """Number of policies."""
        return len(self.policies)

    def check_weights(self, weights: Sequence[float]) -> None:
        """Check weights (K,) of a candidate, see `Composition`."""
        self.composed.check_weights(weights)

    def with_weights(self, weights: Tensor) -> AveragedChunks:
        """Return the policies with any weight under other weights, see `Composition`."""
        return self._with(self.composed.with_weights(weights))

    def with_policies(self, policies: Sequence[Policy]) -> AveragedChunks:
        """Return the average with views of its policies, in the same coordinate."""
        return self._with(self.composed.with_policies(policies))

    def condition(self, observation: Observation) -> NoReturn:
        """Refuse: an average of chunks has no denoiser.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{self.name}: an average of chunks has no denoiser to compose, steer or serve to a member")

    def sample_chunk(
        self, sample: ChunkSampler, observation: Observation, noise: Tensor, target: InpaintTarget | None
    ) -> Tensor:
        """Sample every policy alone, each from noise of its own, and average the chunks."""
        chunks = []
        for member, draws in zip(self.members, noise.chunk(self.n_samples), strict=True):
            alone = compose([member.policy])
            chunks.append(sample(alone, observation, member.slice(draws), target and target.for_member(member)))
        return self.composed.combine_chunks(chunks)

    def _with(self, composed: ComposedPolicy) -> AveragedChunks:
        other = copy(self)
        object.__setattr__(other, "composed", composed)
        return other
