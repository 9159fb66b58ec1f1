"""From a policy to actions: a sampler's settings, one chunk, and the actor that the rollout engine calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.composition.align import AlignedMember
from gpc.composition.composed import ComposedDenoiser, ComposedPolicy, averages, compose
from gpc.composition.composers import HasWeights
from gpc.composition.steering import evaluate_cost, load_cost
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy, centre_of, observation_tensors
from gpc.score.denoiser import Clamp, Inpainted, Translated
from gpc.score.keyed_noise import keyed_noise

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class InpaintTarget:
    """Steps of a chunk that are decided already: `actions` (batch, horizon, action) in the environment's units, to which
    the new chunk is drawn with `weight` (horizon,) or (batch, horizon) from 0 to 1; see `Inpainted`.
    """

    actions: Array
    weight: Array

    def of(self, member: AlignedMember) -> InpaintTarget:
        """What is known of a member's steps and dimensions."""
        return InpaintTarget(member.slice(torch.from_numpy(self.actions)).numpy(), self.weight[..., member.steps])

    def repeated(self, count: int) -> InpaintTarget:
        """The same for a batch, repeated so many times."""
        weight = np.broadcast_to(self.weight, self.actions.shape[:2])
        return InpaintTarget(np.tile(self.actions, (count, 1, 1)), np.tile(weight, (count, 1)))


def sample_chunk(
    policy: Policy,
    observation: Mapping[str, Tensor],
    noise: Tensor,
    sampling: Sampling,
    known: InpaintTarget | None = None,
) -> Tensor:
    """Sample normalised chunks (batch, horizon, action) from noise (`sampling.n_noise_draws(policy)`, batch, horizon, action).

    Raises:
        InputError: sampler and composer do not fit.
    """
    sampling.check(policy)
    if averages(policy):
        return _average(policy, observation, noise, sampling, known)
    many = sampling.candidates
    if many > 1:
        policy = repeated(policy, many)
        observation = {key: value.repeat(many, *[1] * (value.ndim - 1)) for key, value in observation.items()}
        noise = noise.reshape(many, -1, *noise.shape[1:]).transpose(0, 1).flatten(1, 2)
        known = known and known.repeated(many)
    denoiser = policy.condition(observation)
    if isinstance(denoiser, ComposedDenoiser):
        denoiser = denoiser.keyed(noise[0])
    if policy.actions.bound is not None:
        denoiser = Clamp(denoiser, policy.actions.bound)
    if known is not None:
        decided = policy.actions.encode(torch.from_numpy(known.actions))
        denoiser = Inpainted(denoiser, decided, torch.from_numpy(known.weight))
    centre = centre_of(policy, observation)
    if centre is None:
        x = sampling.sample(denoiser, policy.levels, noise)
    else:  # samplers start from noise around 0
        x = centre + sampling.sample(Translated(denoiser, -centre), policy.levels, noise)
    if many == 1:
        return x
    chunks = x.reshape(many, -1, *x.shape[1:])
    if sampling.critic is None:
        taken = medoid(chunks)
    else:
        cost = evaluate_cost(load_cost(sampling.critic), sampling.critic, policy.actions.decode(x), observation)
        taken = cost.reshape(many, -1).argmin(0)
    return chunks[taken, torch.arange(chunks.shape[1])]


def _average(
    policy: ComposedPolicy,
    observation: Mapping[str, Tensor],
    noise: Tensor,
    sampling: Sampling,
    known: InpaintTarget | None,
) -> Tensor:
    """The members' own chunks, averaged: each is sampled alone, from noise of its own."""
    chunks = []
    for member, own in zip(policy.members, noise.chunk(len(policy.members)), strict=True):
        alone = compose([member.policy])
        spec = alone.observations
        seen = {key: observation[key][:, -spec.n_obs_steps :] for key in spec.shapes}
        chunks.append(sample_chunk(alone, seen, member.slice(own), sampling, known and known.of(member)))
    return policy.combine_chunks(chunks)


def repeated(policy: Policy, count: int) -> Policy:
    """The policy for a batch, repeated so many times: where each row has weights of its own they are repeated, too."""
    if (
        isinstance(policy, ComposedPolicy)
        and isinstance(policy.composer, HasWeights)
        and policy.composer.weights.ndim == 2
    ):
        weights = policy.composer.weights.repeat(count, 1)
        return replace(policy, composer=policy.composer.with_weights(weights))
    return policy


def medoid(chunks: Tensor) -> Tensor:
    """Of chunks (candidates, batch, horizon, action) the number of the one nearest to all others, (batch,).

    By the sum of its distances to them: the medoid, a consensus that is itself a sample (unlike the mean).
    """
    flat = chunks.flatten(2).transpose(0, 1)
    return torch.cdist(flat, flat).sum(-1).argmin(-1)


def sample_actions(
    policy: Policy,
    sampling: Sampling,
    observation: Mapping[str, Array],
    seeds: Array,
    chunks: Array,
    known: InpaintTarget | None = None,
) -> Array:
    """Whole chunks (batch, horizon, action) in the environment's units, the first step being `policy.actions.start` from now.

    observation[key] (batch, n_obs_steps or more, *shape); the noise is that of (seed, chunk number), both (batch,).
    """
    spec, steps = policy.actions, policy.observations.n_obs_steps
    seen = {key: value[:, -steps:] for key, value in observation.items()}
    noise = keyed_noise(seeds, chunks, sampling.n_noise_draws(policy), spec.shape)
    return spec.decode(sample_chunk(policy, observation_tensors(seen), noise, sampling, known)).numpy()
