"""The settings of a sampler, and its grid of noise levels for a policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpc.composition.composed import ComposedPolicy, averages
from gpc.composition.steering import load_cost
from gpc.errors import InputError
from gpc.policy.spec import Policy
from gpc.score.denoiser import Denoiser
from gpc.score.noise import NoiseLevels, karras_sigmas, snap_sigmas, trained_sigmas
from gpc.score.samplers import DETERMINISTIC, METHODS, ancestral, langevin, last, teleport

GRIDS = ("karras", "trained")


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

    def n_noise_draws(self, policy: Policy) -> int:
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
