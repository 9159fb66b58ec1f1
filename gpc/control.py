"""From a policy to actions: a sampler's settings, one chunk, and the actor that the rollout engine calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.align import Aligned
from gpc.composers import Average, Weightable
from gpc.composition import ComposedDenoiser, ComposedPolicy, compose
from gpc.denoise import Clamp, Decided, Denoiser, Shifted
from gpc.errors import InputError
from gpc.noise import NoiseLevels, karras_sigmas, snap_sigmas, trained_sigmas
from gpc.policy import ActionSpec, Policy, centre_of, observation_tensors
from gpc.sample import DETERMINISTIC, METHODS, ancestral, langevin, last, teleport
from gpc.steering import judge, load_cost

Array = npt.NDArray[Any]
GRIDS = ("karras", "trained")
ROWS = 16  # batches are padded to a multiple: a row's result is then bitwise the same whatever shares its batch


@dataclass(frozen=True)
class Sampling:
    """How a chunk is sampled: the method and a grid of `steps` levels inside what the policy was trained for.

    "karras": the grid of Karras et al. 2022 between `sigma_max` and `sigma_min`, which are in the (first) policy's normalised
    units and are cut to its trained range. "trained": of a discrete policy's own levels, evenly spaced, as DDPM and DDIM take
    them; the other settings of the grid have no part in it.

    `corrections` and `rate` are those of method "langevin". Of `candidates` chunks the one nearest to all others is taken or, where
    there is a `critic`, the one of least cost. With `teleport` the first step goes down to that sigma as if data were a Gaussian
    of standard deviation `spread`.
    """

    method: str = "dpmpp_2m"
    steps: int = 8
    sigma_max: float = 40.0
    sigma_min: float = 0.01
    grid: str = "karras"
    corrections: int = 0
    rate: float = 0.1
    candidates: int = 1
    critic: str | None = None
    teleport: float | None = None
    spread: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"unknown sampler {self.method!r}; choose one of {', '.join(METHODS)}")
        if self.grid not in GRIDS:
            raise InputError(f"sampler.grid={self.grid!r}: choose one of {', '.join(GRIDS)}")
        if not 1 <= self.steps <= 10_000:
            raise InputError(f"sampler.steps={self.steps}: choose a number from 1 to 10000")
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(f"sampler needs 0 < sigma_min < sigma_max, not {self.sigma_min:g}, {self.sigma_max:g}")
        self._check_options()

    def _check_options(self) -> None:
        if not 0 <= self.corrections <= 1000 or (self.corrections and self.method != "langevin"):
            raise InputError(f"sampler.corrections={self.corrections}: steps of sampler=langevin, from 0 to 1000")
        if not 0 < self.rate < 1:
            raise InputError(f"sampler.rate={self.rate:g}: choose a number between 0 and 1")
        if not 1 <= self.candidates <= 1024 or self.spread < 0:
            raise InputError(
                f"sampler needs 1 to 1024 candidates and spread >= 0, not {self.candidates}, {self.spread:g}"
            )
        if self.critic is not None and self.candidates == 1:
            raise InputError("sampler.critic chooses among candidates; give it sampler.candidates=4, say")
        sigma = self.teleport
        if sigma is not None and not (self.sigma_min < sigma < self.sigma_max and self.grid == "karras"):
            raise InputError(f"sampler.teleport={sigma:g}: a level between sigma_min and sigma_max of grid=karras")
        if sigma is not None and self.steps < 2:
            raise InputError("sampler.teleport takes a step of its own; give it sampler.steps=2 or more")

    def draws(self, policy: Policy) -> int:
        """How many times a chunk's noise is drawn: at the start and along a stochastic method, for every sample that is taken."""
        steps = {"ancestral": self.steps, "langevin": self.steps * self.corrections}
        samples = self.candidates * (len(policy.policies) if averages(policy) else 1)
        return samples * (1 + steps.get(self.method, 0))

    def check(self, policy: Policy) -> None:
        """Raises InputError where the critic is unknown or the policy's composer needs the noise of a stochastic method."""
        _ = self.critic and load_cost(self.critic)
        if isinstance(policy, ComposedPolicy) and policy.composer.stochastic and self.method != "ancestral":
            name = type(policy.composer).__name__.lower()
            raise InputError(
                f"composer={name} follows densities along noisy steps; take sampler=ancestral, not {self.method}"
            )

    def sigmas(self, levels: NoiseLevels) -> Tensor:
        """The grid for a policy: descending, (about steps + 1,), on its trained levels if it is discrete.

        Raises:
            InputError: the sampler's range and the policy's do not meet, or the policy has no such trained levels.
        """
        if self.grid == "trained":
            return trained_sigmas(levels, self.steps)
        low, high = max(self.sigma_min, levels.sigma_min), min(self.sigma_max, levels.sigma_max)
        top = self.teleport or high
        if low >= high or not low < top <= high:
            raise InputError(
                f"sampler.sigma_min={self.sigma_min:g}, sampler.sigma_max={self.sigma_max:g}: the policy was trained from "
                f"sigma={levels.sigma_min:.4g} to {levels.sigma_max:.4g}"
            )
        if self.teleport is None:
            return snap_sigmas(karras_sigmas(self.steps, low, top), levels)
        below = karras_sigmas(self.steps - 1, low, top)
        return snap_sigmas(torch.cat([below.new_tensor([high]), below]), levels)

    def sample(self, denoiser: Denoiser, levels: NoiseLevels, noise: Tensor) -> Tensor:
        """A sample of a denoiser with these levels, from noise (as often as the method draws, batch, horizon, action)."""
        sigmas = self.sigmas(levels)
        x, noise = sigmas[0] * noise[0], noise[1:]
        if self.teleport is not None:
            x, sigmas = teleport(denoiser, x, sigmas[0], sigmas[1], self.spread), sigmas[1:]
        match self.method:
            case "ancestral":
                return last(ancestral(denoiser, x, sigmas, noise.__getitem__))
            case "langevin":
                return last(langevin(denoiser, x, sigmas, noise.__getitem__, self.corrections, self.rate))
            case method:
                return last(DETERMINISTIC[method](denoiser, x, sigmas))


def keyed_noise(seeds: Array, chunks: Array, count: int, actions: ActionSpec) -> Tensor:
    """Standard normal noise (count, batch, horizon, action), float64; a row depends on its (seed, chunk) alone.

    The same seed therefore meets the same noise under every candidate's weights (common random numbers).
    """
    shape = (count, actions.horizon, actions.dim)
    bits = np.random.Philox(key=0)
    generator, start = np.random.Generator(bits), bits.state  # setting a state costs a tenth of a new generator
    noise = np.empty((count, len(seeds), *shape[1:]))
    for i, key in enumerate(np.stack([seeds.astype(np.uint64), chunks.astype(np.uint64)], axis=1)):
        bits.state = start | {"state": start["state"] | {"key": key}}
        noise[:, i] = generator.standard_normal(shape)
    return torch.from_numpy(noise)


@dataclass(frozen=True)
class Known:
    """Steps of a chunk that are decided already: `actions` (batch, horizon, action) in the environment's units, to which
    the new chunk is drawn with `weight` (horizon,) or (batch, horizon) from 0 to 1; see `Decided`.
    """

    actions: Array
    weight: Array

    def of(self, member: Aligned) -> Known:
        """What is known of a member's steps and dimensions."""
        return Known(member.part(torch.from_numpy(self.actions)).numpy(), self.weight[..., member.steps])

    def repeated(self, count: int) -> Known:
        """The same for a batch, repeated so many times."""
        weight = np.broadcast_to(self.weight, self.actions.shape[:2])
        return Known(np.tile(self.actions, (count, 1, 1)), np.tile(weight, (count, 1)))


def sample_chunk(
    policy: Policy,
    observation: Mapping[str, Tensor],
    noise: Tensor,
    sampling: Sampling,
    known: Known | None = None,
) -> Tensor:
    """Sample normalised chunks (batch, horizon, action) from noise (`sampling.draws(policy)`, batch, horizon, action).

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
        denoiser = Decided(denoiser, decided, torch.from_numpy(known.weight))
    centre = centre_of(policy, observation)
    if centre is None:
        x = sampling.sample(denoiser, policy.levels, noise)
    else:  # samplers start from noise around 0
        x = centre + sampling.sample(Shifted(denoiser, -centre), policy.levels, noise)
    if many == 1:
        return x
    chunks = x.reshape(many, -1, *x.shape[1:])
    if sampling.critic is None:
        taken = most_typical(chunks)
    else:
        cost = judge(load_cost(sampling.critic), sampling.critic, policy.actions.decode(x), observation)
        taken = cost.reshape(many, -1).argmin(0)
    return chunks[taken, torch.arange(chunks.shape[1])]


def _average(
    policy: ComposedPolicy,
    observation: Mapping[str, Tensor],
    noise: Tensor,
    sampling: Sampling,
    known: Known | None,
) -> Tensor:
    """The members' own chunks, averaged: each is sampled alone, from noise of its own."""
    chunks = []
    for member, own in zip(policy.members, noise.chunk(len(policy.members)), strict=True):
        alone = compose([member.policy])
        spec = alone.observations
        seen = {key: observation[key][:, -spec.n_obs_steps :] for key in spec.shapes}
        chunks.append(sample_chunk(alone, seen, member.part(own), sampling, known and known.of(member)))
    return policy.joined(chunks)


def averages(policy: Policy) -> TypeGuard[ComposedPolicy]:
    """Whether a policy's members sample chunks of their own."""
    return isinstance(policy, ComposedPolicy) and isinstance(policy.composer, Average) and len(policy.policies) > 1


def repeated(policy: Policy, count: int) -> Policy:
    """The policy for a batch, repeated so many times: where each row has weights of its own they are repeated, too."""
    if (
        isinstance(policy, ComposedPolicy)
        and isinstance(policy.composer, Weightable)
        and policy.composer.weights.ndim == 2
    ):
        weights = policy.composer.weights.repeat(count, 1)
        return replace(policy, composer=policy.composer.weighted(weights))
    return policy


def most_typical(chunks: Tensor) -> Tensor:
    """Of chunks (candidates, batch, horizon, action) the number of the one nearest to all others, (batch,).

    By the sum of its distances to them: the medoid, a consensus that is itself a sample (unlike the mean).
    """
    flat = chunks.flatten(2).transpose(0, 1)
    return torch.cdist(flat, flat).sum(-1).argmin(-1)


def plan(
    policy: Policy,
    sampling: Sampling,
    observation: Mapping[str, Array],
    seeds: Array,
    chunks: Array,
    known: Known | None = None,
) -> Array:
    """Whole chunks (batch, horizon, action) in the environment's units, the first step being `policy.actions.start` from now.

    observation[key] (batch, n_obs_steps or more, *shape); the noise is that of (seed, chunk number), both (batch,).
    """
    spec, steps = policy.actions, policy.observations.n_obs_steps
    seen = {key: value[:, -steps:] for key, value in observation.items()}
    noise = keyed_noise(seeds, chunks, sampling.draws(policy), spec)
    return spec.decode(sample_chunk(policy, observation_tensors(seen), noise, sampling, known)).numpy()


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
        self._check(self.policy)

    def check(self, weights: Sequence[float]) -> None:
        """Raises InputError where the policies that have weight in `weights` (parts * K,) cannot act without the others."""
        self._check(self.policy.weighted(torch.tensor(weights, dtype=torch.float64)))

    def _check(self, policy: ComposedPolicy) -> None:
        whole = self.policy.actions
        steps = Aligned(policy, whole).steps
        first, ahead = steps.start + whole.start, steps.stop + whole.start
        if first > 0 or not 1 <= self.n_action_steps <= ahead:
            raise InputError(
                f"n_action_steps={self.n_action_steps}: {policy.name} predicts steps {first} to {ahead - 1} from now; "
                f"choose 1 to {ahead}"
            )
        _ = self.sampling.sigmas(policy.levels)

    def __call__(self, observation: Mapping[str, Array], weights: Array, seeds: Array, chunks: Array) -> Array:
        """observation[key] (batch, n_obs_steps, *shape), weights (batch, parts * K) -> (batch, n_action_steps, action).

        Rows with weight on the same policies go together: a parent is sampled as itself, as if alone.
        """
        weighted = (weights.reshape(len(weights), -1, len(self.policy.policies)) != 0).any(1)
        spec = self.policy.actions
        actions = np.empty((len(seeds), self.n_action_steps, spec.dim))
        for members in np.unique(weighted, axis=0):
            rows = np.flatnonzero((weighted == members).all(1))
            taken = padded(rows)
            policy = self.policy.weighted(torch.from_numpy(weights[taken]))
            seen = {key: value[taken] for key, value in observation.items()}
            chunk = plan(policy, self.sampling, seen, seeds[taken], chunks[taken])[: len(rows)]
            whole = Aligned(policy, spec).placed(torch.from_numpy(chunk)).numpy()
            actions[rows] = whole[:, -spec.start : self.n_action_steps - spec.start]
        return actions
