"""One chunk of actions from an observation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gpc.composition.chunks import SamplesChunks
from gpc.composition.inpainting import InpaintTarget
from gpc.inference.settings import Sampling
from gpc.policy.spec import Observation, Policy, prior_mean_of
from gpc.score.denoiser import Clamp, Inpainted, Translated, with_noise_keys
from gpc.score.keyed_noise import NoiseKeys, keyed_noise
from gpc.types import Array


def sample_chunk(
    policy: Policy,
    observation: Observation,
    noise: Tensor,
    sampling: Sampling,
    target: InpaintTarget | None = None,
    keys: NoiseKeys | None = None,
) -> Tensor:
    """Sample a chunk for each observation of a batch.

    Args:
        policy: A policy.
        observation: key -> (batch, n_obs_steps, *shape).
        noise: (`sampling.n_noise_draws(policy)`, batch, horizon, action).
        sampling: Settings of the sampler.
        target: Actions to which the chunk is drawn.
        keys: Keys of the rows, for noise that members add (`gpc.composition.noise_matching`).

    Returns:
        Normalised chunks (batch, horizon, action).

    Raises:
        InputError: If sampler and policy do not fit.
    """
    sampling.check(policy)
    if isinstance(policy, SamplesChunks):

        def sample(policy: Policy, observation: Observation, noise: Tensor, target: InpaintTarget | None) -> Tensor:
            return sample_chunk(policy, observation, noise, sampling, target, keys)

        return policy.sample_chunk(sample, observation, noise, target)
    if sampling.best_of is None:
        return _sample(sampling, policy, observation, noise, target, keys)
    batch = sampling.best_of.tile(policy, observation, noise, target, keys)
    return sampling.best_of.choose(_sample(sampling, *batch), *batch[:2])


@torch.no_grad()  # a policy's own code need not do it
def _sample(
    sampling: Sampling,
    policy: Policy,
    observation: Observation,
    noise: Tensor,
    target: InpaintTarget | None,
    keys: NoiseKeys | None,
) -> Tensor:
    denoiser = policy.condition(observation)
    if keys is not None:
        denoiser = with_noise_keys(denoiser, keys)
    if policy.actions.bound is not None:
        denoiser = Clamp(denoiser, policy.actions.bound)
    if target is not None:
        actions = policy.actions.encode(torch.from_numpy(target.actions))
        denoiser = Inpainted(denoiser, actions, torch.from_numpy(target.mask))
    mean = prior_mean_of(policy, observation)
    if mean is None:
        return sampling.sample(denoiser, policy.levels, noise)
    return mean + sampling.sample(Translated(denoiser, -mean), policy.levels, noise)  # noise around 0


def sample_actions(
    policy: Policy,
    sampling: Sampling,
    observation: Mapping[str, Array],
    seeds: Array,
    chunks: Array,
    target: InpaintTarget | None = None,
) -> Array:
    """Sample full chunks of actions.

    The noise depends on seed and chunk number alone.

    Args:
        policy: A policy.
        sampling: Settings of the sampler.
        observation: key -> (batch, n_obs_steps or more, *shape).
        seeds: Episode seeds (batch,).
        chunks: Numbers of the chunks in their episodes (batch,).
        target: Actions to which the chunk is drawn.

    Returns:
        Actions (batch, horizon, action) in the environment's units; the first step is `policy.actions.start` from now.

    Raises:
        InputError: If sampler and policy do not fit, or an observation is missing.
    """
    spec = policy.actions
    tensors = policy.observations.read(observation)
    noise = keyed_noise(seeds, chunks, sampling.n_noise_draws(policy), spec.shape)
    return spec.decode(sample_chunk(policy, tensors, noise, sampling, target, NoiseKeys.of(seeds, chunks))).numpy()
