"""The settings of a sampler, and its grid of noise levels for a policy."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from gpc.composition.chunks import SamplesChunks
from gpc.errors import InputError
from gpc.inert import LONGEST_REPR, short
from gpc.inference.best_of import BestOf
from gpc.inference.methods import Langevin, Teleport, method_of
from gpc.policy.spec import Policy, is_stochastic
from gpc.score.denoiser import Denoiser
from gpc.score.noise import (
    SPACINGS,
    NoiseLevels,
    exponential_sigmas,
    flow_sigmas,
    snap_sigmas,
    spaced_sigmas,
    trained_sigmas,
)

GRIDS = ("karras", "exponential", "flow", "trained", *SPACINGS)


@dataclass(frozen=True)
class Sampling:
    """How a chunk is sampled.

    Attributes:
        method: "dpmpp_2m", "euler", "ddim", "ancestral" or "renoise", or an object: `Langevin`, `Teleport`.
        steps: Number of levels.
        sigma_max: First level, in normalised units of the first policy; cut to the range of the policy's training.
        sigma_min: Last level before zero, likewise.
        grid: "karras" (Karras et al. 2022) or "exponential" (evenly spaced in log sigma), within the range. The others
            ignore the range. "flow": t = 1, 1 - 1 / steps, ... of a flow, sigma = t / (1 - t). "trained": `steps` of a
            discrete policy's own levels, evenly spaced in index. "leading", "trailing", "linspace": such levels as
            diffusers' schedulers choose them, and its start from noise of variance 1.
        best_of: Sample several chunks and keep one.

    Raises:
        InputError: If a setting is unknown or out of its range.
    """

    method: str | Langevin | Teleport = "dpmpp_2m"
    steps: int = 8
    sigma_max: float = 40.0
    sigma_min: float = 0.01
    grid: str = "karras"
    best_of: BestOf | None = None

    def __post_init__(self) -> None:
        method = method_of(self.method)
        if self.grid not in GRIDS:
            raise InputError(f"sampler.grid={self.grid!r}: choose one of {', '.join(GRIDS)}")
        if not 1 <= self.steps <= 10_000:
            raise InputError(f"sampler.steps={self.steps}: choose a number from 1 to 10000")
        if not 0 < self.sigma_min < self.sigma_max < float("inf"):
            raise InputError(f"sampler needs 0 < sigma_min < sigma_max, not {self.sigma_min:g}, {self.sigma_max:g}")
        if isinstance(method, Teleport) and self.grid != "karras":
            raise InputError("a teleport goes to a level of its own, not to one of a grid; give it sampler.grid=karras")
        method.grid(self.steps, self.sigma_min, self.sigma_max)

    def __repr__(self) -> str:
        changed = [f.name for f in fields(self) if f.name == "steps" or getattr(self, f.name) != f.default]
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in dict.fromkeys(["method", *changed]))
        return short(f"Sampling({settings})", LONGEST_REPR)

    def n_noise_draws(self, policy: Policy) -> int:
        """Return how often noise is drawn for a chunk, for all its samples."""
        samples = policy.n_samples if isinstance(policy, SamplesChunks) else 1
        samples *= self.best_of.n if self.best_of else 1
        return samples * (1 + method_of(self.method).n_draws(self.steps))

    def check(self, policy: Policy) -> None:
        """Check that a policy can be sampled in this way.

        Raises:
            InputError: If the cost is unknown, or the policy needs the noise of an SDE.
        """
        if self.best_of:
            self.best_of.check()
        if is_stochastic(policy) and not method_of(self.method).follows_sde:
            raise InputError(
                f"composer=or and composer=and follow densities along noisy steps; take sampler=ancestral for {policy.name}"
            )

    def sigmas(self, levels: NoiseLevels) -> Tensor:
        """Return the descending grid for a policy, on its trained levels if discrete.

        Returns:
            About `steps` levels and a final zero.

        Raises:
            InputError: If the sampler's range and the policy's do not meet, or the policy has no such trained levels.
        """
        if self.grid == "trained":
            return trained_sigmas(levels, self.steps)
        if self.grid in SPACINGS:
            return spaced_sigmas(levels, self.steps, self.grid)
        if self.grid == "flow":
            even = flow_sigmas(self.steps)[:-1].clamp(levels.sigma_min, levels.sigma_max)
            return snap_sigmas(even, levels)
        low, high = max(self.sigma_min, levels.sigma_min), min(self.sigma_max, levels.sigma_max)
        if low >= high:
            raise InputError(
                f"sampler.sigma_min={self.sigma_min:g}, sampler.sigma_max={self.sigma_max:g}: the policy was trained from "
                f"sigma={levels.sigma_min:.4g} to {levels.sigma_max:.4g}"
            )
        grid = exponential_sigmas if self.grid == "exponential" else method_of(self.method).grid
        return snap_sigmas(grid(self.steps, low, high), levels)

    def sample(self, denoiser: Denoiser, levels: NoiseLevels, noise: Tensor) -> Tensor:
        """Return a sample of a denoiser.

        Args:
            denoiser: A denoiser.
            levels: Its levels.
            noise: (draws of one sample, batch, horizon, action).
        """
        sigmas = self.sigmas(levels)
        start = (1 + sigmas[0] ** 2).sqrt() if self.grid in SPACINGS else sigmas[0]
        return method_of(self.method).sample(denoiser, start * noise[0], sigmas, noise[1:])
