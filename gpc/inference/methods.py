"""Sampling methods: a solver with the noise that it draws and the levels that it visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from msgspec import Struct
from torch import Tensor

from gpc.errors import InputError
from gpc.score.denoiser import Denoiser
from gpc.score.noise import karras_sigmas
from gpc.score.samplers import DETERMINISTIC, ancestral, langevin, last, teleport

MOST = 1000  # corrections at a level


class Method(Protocol):
    """A way from noise to a sample along descending levels."""

    @property
    def follows_sde(self) -> bool:
        """True if the steps are those of the reverse SDE, as OR and AND need."""

    def n_draws(self, steps: int) -> int:
        """Return how often noise is drawn after the start, in `steps` steps."""

    def grid(self, steps: int, low: float, high: float) -> Tensor:
        """Return levels from `high` to `low` and a final zero, descending, (steps + 1,)."""

    def sample(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        """Return the sample.

        Args:
            denoiser: A denoiser.
            x: Noisy chunks (batch, horizon, action) at `sigmas[0]`.
            sigmas: Descending levels with a zero at the end.
            noise: (n_draws, batch, horizon, action).
        """


class _Karras:
    def grid(self, steps: int, low: float, high: float) -> Tensor:
        """Return the grid of Karras et al. 2022."""
        return karras_sigmas(steps, low, high)


@dataclass(frozen=True)
class Solver(_Karras):
    """A sampler without noise after the start, by its name."""

    name: str
    follows_sde = False

    def n_draws(self, steps: int) -> int:
        """Return 0."""
        return 0

    def sample(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        """Return the sample, see `Method`."""
        return last(DETERMINISTIC[self.name](denoiser, x, sigmas))


@dataclass(frozen=True)
class Ancestral(_Karras):
    """DDPM's posterior steps."""

    follows_sde = True

    def n_draws(self, steps: int) -> int:
        """Return one draw for each step."""
        return steps

    def sample(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        """Return the sample, see `Method`."""
        return last(ancestral(denoiser, x, sigmas, noise.__getitem__))


NAMED: dict[str, Method] = {**{name: Solver(name) for name in DETERMINISTIC}, "ancestral": Ancestral()}
"""The methods without settings, by name."""


class Langevin(Struct, _Karras, frozen=True, tag="langevin", tag_field="type", forbid_unknown_fields=True):
    """Euler steps, each with `corrections` steps of Langevin dynamics at its level.

    A step costs 1 + `corrections` evaluations. See `gpc.score.samplers.langevin`.

    Attributes:
        corrections: Langevin steps at each level.
        rate: Step size over sigma^2.

    Raises:
        InputError: If a number is out of its range.
    """

    corrections: int = 4
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.corrections <= MOST:
            raise InputError(f"sampler.method.corrections={self.corrections}: choose a number from 0 to {MOST}")
        if not 0 < self.rate < 1:
            raise InputError(f"sampler.method.rate={self.rate:g}: choose a number between 0 and 1")

    @property
    def follows_sde(self) -> bool:
        """False."""
        return False

    def n_draws(self, steps: int) -> int:
        """Return one draw for each correction."""
        return steps * self.corrections

    def sample(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        """Return the sample, see `Method`."""
        return last(langevin(denoiser, x, sigmas, noise.__getitem__, self.corrections, self.rate))


class Teleport(Struct, frozen=True, tag="teleport", tag_field="type", forbid_unknown_fields=True):
    """A first step down to `sigma` as if the data were Gaussian, then another method.

    It pays at 2 to 5 evaluations a chunk only; with 8 or more the method alone is better (docs/results/steps.md).
    The formula is that of `gpc.score.samplers.teleport`.

    Attributes:
        sigma: Level after the first step, in normalised units.
        spread: Standard deviation of the Gaussian, in normalised units.
        method: The method of the other steps.

    Raises:
        InputError: If a number is out of its range, or the method is unknown.
    """

    sigma: float
    spread: float = 0.5
    method: str | Langevin = "dpmpp_2m"

    def __post_init__(self) -> None:
        if not 0 <= self.spread < float("inf"):
            raise InputError(f"sampler.method.spread={self.spread:g}: choose a finite number of at least 0")
        method_of(self.method)

    @property
    def follows_sde(self) -> bool:
        """True if the other steps do."""
        return method_of(self.method).follows_sde

    def n_draws(self, steps: int) -> int:
        """Return the draws of the other method."""
        return method_of(self.method).n_draws(steps)

    def grid(self, steps: int, low: float, high: float) -> Tensor:
        """Return `high`, then the other method's grid from `sigma` on.

        Raises:
            InputError: If `sigma` lies outside of the range, or there is one step only.
        """
        if not low < self.sigma <= high:
            raise InputError(f"sampler.method.sigma={self.sigma:g}: choose a level from {low:g} to {high:g}")
        if steps < 2:
            raise InputError("a teleport takes a step of its own; give it sampler.steps=2 or more")
        below = method_of(self.method).grid(steps - 1, low, self.sigma)
        return torch.cat([below.new_tensor([high]), below])

    def sample(self, denoiser: Denoiser, x: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
        """Return the sample, see `Method`."""
        x = teleport(denoiser, x, sigmas[0], sigmas[1], self.spread)
        return method_of(self.method).sample(denoiser, x, sigmas[1:], noise)


def method_of(method: str | Langevin | Teleport) -> Method:
    """Return a method by its name; an object is returned as it is.

    Raises:
        InputError: If the name is unknown.
    """
    if not isinstance(method, str):
        return method
    if method not in NAMED:
        raise InputError(
            f"unknown sampler {method!r}; choose one of {', '.join(NAMED)}, or give {{type: langevin}} or {{type: teleport}}"
        )
    return NAMED[method]
