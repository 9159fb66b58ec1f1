"""From a policy to actions: a sampler's settings, and the actor that the rollout engine calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.composition import ComposedPolicy
from gpc.denoise import Clamp, Decided, Denoiser
from gpc.errors import InputError
from gpc.noise import NoiseLevels, karras_sigmas, snap_sigmas, trained_sigmas
from gpc.policy import ActionSpec, Policy, observation_tensors
from gpc.sample import DETERMINISTIC, METHODS, ancestral, last
from gpc.superposition import Superposed

Array = npt.NDArray[Any]
GRIDS = ("karras", "trained")
ROWS = 16  # batches are padded to a multiple: a row's result is then bitwise the same whatever shares its batch


@dataclass(frozen=True)
class Sampling:
    """How a chunk is sampled: the method and a grid of `steps` levels inside what the policy was trained for.

    "karras": the grid of Karras et al. 2022 between `sigma_max` and `sigma_min`, which are in the (first) policy's normalised
    units and are cut to its trained range. "trained": of a discrete policy's own levels, evenly spaced, as DDPM and DDIM take
    them; the other settings of the grid have no part in it.
    """

    method: str = "dpmpp_2m"
    steps: int = 8
    sigma_max: float = 40.0
    sigma_min: float = 0.01
    rho: float = 7.0
    grid: str = "karras"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown sampler {self.method!r}; choose one of {', '.join(METHODS)}")
        if self.grid not in GRIDS:
            raise InputError(f"sampler.grid={self.grid!r}: choose one of {', '.join(GRIDS)}")
        if self.steps < 1:
            raise InputError(f"sampler.steps={self.steps}: at least one step is needed")
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(f"sampler needs 0 < sigma_min < sigma_max, not {self.sigma_min:g}, {self.sigma_max:g}")

    @property
    def draws(self) -> int:
        """How many times a chunk's noise is drawn: at the start, and at every step of a stochastic method."""
        return self.steps + 1 if self.method == "ancestral" else 1

    def check(self, policy: Policy) -> None:
        """Raises InputError where the policy's composer needs the noise of a stochastic method."""
        if (
            isinstance(policy, ComposedPolicy)
            and isinstance(policy.composer, Superposed)
            and self.method != "ancestral"
        ):
            name = type(policy.composer).__name__.lower()
            raise InputError(
                f"composer={name} follows densities along noisy steps; take sampler=ancestral, not {self.method}"
            )

    def sigmas(self, levels: NoiseLevels) -> Tensor:
        """The grid for a policy: descending, (about steps + 1,), on trained levels where it has them.

        Raises InputError where the sampler's range and the policy's do not meet, or where it has no such trained levels.
        """
        if self.grid == "trained":
            return trained_sigmas(levels, self.steps)
        low, high = max(self.sigma_min, levels.sigma_min), min(self.sigma_max, levels.sigma_max)
        if low >= high:
            raise InputError(
                f"sampler.sigma_min={self.sigma_min:g}, sampler.sigma_max={self.sigma_max:g}: the policy was trained from "
                f"sigma={levels.sigma_min:.4g} to {levels.sigma_max:.4g}"
            )
        return snap_sigmas(karras_sigmas(self.steps, low, high, self.rho), levels)


def keyed_noise(seeds: Array, chunks: Array, count: int, actions: ActionSpec) -> Tensor:
    """Standard normal noise (count, batch, horizon, action), float64; a row depends on its (seed, chunk) alone.

    The same seed therefore meets the same noise under every candidate's weights (common random numbers).
    """
    shape = (count, actions.horizon, actions.dim)
    rows = [
        np.random.Generator(np.random.Philox(key=np.array([seed, chunk], np.uint64))).standard_normal(shape)
        for seed, chunk in zip(seeds, chunks, strict=True)
    ]
    return torch.from_numpy(np.stack(rows, axis=1))


def sample_chunk(
    policy: Policy,
    observation: dict[str, Tensor],
    noise: Tensor,
    sampling: Sampling,
    wrap: Callable[[Denoiser], Denoiser] | None = None,
) -> Tensor:
    """Sample normalised chunks (batch, horizon, action) from noise (`sampling.draws`, batch, horizon, action).

    `wrap` is applied to the denoiser last, as `Decided` for steps that are known already. Raises InputError where sampler and
    composer do not fit.
    """
    sampling.check(policy)
    denoiser = policy.condition(observation)
    if policy.actions.bound is not None:
        denoiser = Clamp(denoiser, policy.actions.bound)
    if wrap is not None:
        denoiser = wrap(denoiser)
    sigmas = sampling.sigmas(policy.levels)
    x = sigmas[0] * noise[0]
    if sampling.method == "ancestral":
        return last(ancestral(denoiser, x, sigmas, lambda i: noise[i + 1]))
    return last(DETERMINISTIC[sampling.method](denoiser, x, sigmas))


@dataclass(frozen=True)
class Known:
    """Steps of a chunk that are decided already: `actions` (batch, horizon, action) in the environment's units, to which
    the new chunk is drawn with `weight` (horizon,) or (batch, horizon) from 0 to 1; see `Decided`.
    """

    actions: Array
    weight: Array


def plan(
    policy: Policy,
    sampling: Sampling,
    observation: dict[str, Array],
    seeds: Array,
    chunks: Array,
    known: Known | None = None,
) -> Array:
    """Whole chunks (batch, horizon, action) in the environment's units, the first step being `policy.actions.start` from now.

    observation[key] (batch, n_obs_steps or more, *shape); the noise is that of (seed, chunk number), both (batch,).
    """
    spec, steps = policy.actions, policy.observations.n_obs_steps
    seen = {key: value[:, -steps:] for key, value in observation.items()}
    noise = keyed_noise(seeds, chunks, sampling.draws, spec)
    wrap = None
    if known is not None:
        chunk, weight = spec.encode(torch.from_numpy(known.actions)), torch.from_numpy(known.weight)
        wrap = partial(Decided, known=chunk, weight=weight)
    return spec.decode(sample_chunk(policy, observation_tensors(seen), noise, sampling, wrap)).numpy()


def padded(rows: Array) -> Array:
    """Row numbers, repeated up to a multiple of `ROWS`."""
    return np.resize(rows, -(-len(rows) // ROWS) * ROWS)


@dataclass(frozen=True)
class ChunkActor:
    """Weights, observations and seeds in, executed actions out: the engine's `Actor` (one batched call for all lanes)."""

    policy: ComposedPolicy
    sampling: Sampling
    n_action_steps: int

    def __post_init__(self) -> None:
        self.sampling.check(self.policy)
        for policy in (self.policy, *self.policy.policies):  # a parent must be able to act alone
            spec = policy.actions
            if spec.start > 0 or not 1 <= self.n_action_steps <= spec.start + spec.horizon:
                raise InputError(
                    f"n_action_steps={self.n_action_steps}: {policy.name} predicts steps {spec.start} to "
                    f"{spec.start + spec.horizon - 1} from now; choose 1 to {spec.start + spec.horizon}"
                )
            _ = self.sampling.sigmas(policy.levels)

    def __call__(self, observation: dict[str, Array], weights: Array, seeds: Array, chunks: Array) -> Array:
        """observation[key] (batch, n_obs_steps, *shape), weights (batch, parts * K) -> (batch, n_action_steps, action).

        Rows with weight on the same policies go together: a parent is sampled as itself, as if alone.
        """
        weighted = (weights.reshape(len(weights), -1, len(self.policy.policies)) != 0).any(1)
        actions = np.empty((len(seeds), self.n_action_steps, self.policy.actions.dim))
        for support in np.unique(weighted, axis=0):
            rows = np.flatnonzero((weighted == support).all(1))
            taken = padded(rows)
            policy = self.policy.weighted(torch.from_numpy(weights[taken]))
            seen = {key: value[taken] for key, value in observation.items()}
            now = -policy.actions.start
            chunk = plan(policy, self.sampling, seen, seeds[taken], chunks[taken])[: len(rows)]
            actions[rows] = chunk[:, now : now + self.n_action_steps]
        return actions
