"""Policies that sample whole chunks instead of denoising them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from gpc.composition.inpainting import InpaintTarget
from gpc.policy.spec import Observation, Policy


class ChunkSampler(Protocol):
    """Samples a chunk of a policy from noise, under settings that are bound already."""

    def __call__(self, policy: Policy, observation: Observation, noise: Tensor, target: InpaintTarget | None) -> Tensor:
        """Return normalised chunks (batch, horizon, action).

        Args:
            policy: A policy.
            observation: key -> (batch, n_obs_steps, *shape).
            noise: (draws, batch, horizon, action).
            target: Actions to which the chunk is drawn.
        """


@runtime_checkable
class SamplesChunks(Protocol):
    """A policy that samples its chunks itself, out of the chunks of other policies."""

    @property
    def n_samples(self) -> int:
        """Number of chunks that are sampled for one chunk, each from noise of its own."""

    def sample_chunk(
        self, sample: ChunkSampler, observation: Observation, noise: Tensor, target: InpaintTarget | None
    ) -> Tensor:
        """Return normalised chunks (batch, horizon, action).

        Args:
            sample: Samples a chunk of another policy.
            observation: key -> (batch, n_obs_steps, *shape).
            noise: (n_samples * draws, batch, horizon, action).
            target: Actions to which the chunk is drawn.
        """
