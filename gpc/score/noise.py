"""Noise levels and schedules: where a model's native time meets the one coordinate.

Every diffusion or flow model is a Gaussian path `x_t = alpha_t * x0 + s_t * noise`. Divided by `alpha_t` it reads
`x = x0 + sigma * noise` with `sigma = s_t / alpha_t`. A schedule holds the scale of that `x` at the network's input and the
label (time step, t, log sigma) of the training. No other module uses time.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gpc.errors import InputError, one_line

SAME_LEVEL = 1e-6  # relative distance under which two noise levels count as one
STEPS = 10_000  # the most levels of a discrete-time model
SPACINGS = ("leading", "trailing", "linspace")  # of diffusers (Lin et al. 2024, arXiv 2305.08891, table 2)
FLOW_START = 1e9  # sigma in place of the infinite one of t = 1; float32 does not tell them apart
NEAR_LEVEL = 0.05  # relative distance between a network's label and its noise that is taken (docs/design.md, section 1)


@dataclass(frozen=True)
class NoiseLevels:
    """The range of sigma of a training, and its levels if they are discrete.

    Attributes:
        sigma_min: Smallest level, at least 0.
        sigma_max: Largest level; infinite for a flow at t = 1.
        trained: Ascending levels, or None for a continuous-time model.

    Raises:
        InputError: If the range is empty, or the levels are not 1 to 10000 ascending positive numbers.
    """

    sigma_min: float
    sigma_max: float
    trained: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max:
            raise InputError(f"noise levels need 0 <= sigma_min < sigma_max, not {self.sigma_min}, {self.sigma_max}")
        if self.trained is not None:
            pairs = zip(self.trained, self.trained[1:], strict=False)
            if not 1 <= len(self.trained) <= STEPS or not self.trained[0] > 0 or not all(a < b for a, b in pairs):
                raise InputError(f"noise levels: trained levels are 1 to {STEPS} ascending numbers above 0")

    def covers(self, sigma: float) -> bool:
        """Return whether sigma lies in the trained range (within one part in a million)."""
        return self.sigma_min * (1 - SAME_LEVEL) <= sigma <= self.sigma_max * (1 + SAME_LEVEL)

    def scaled(self, ratio: float) -> NoiseLevels:
        """Return the levels in a coordinate that is `ratio` times larger."""
        trained = None if self.trained is None else tuple(s * ratio for s in self.trained)
        return NoiseLevels(self.sigma_min * ratio, self.sigma_max * ratio, trained)

    def snap(self, sigma: float) -> float:
        """Return the nearest trained level (in log sigma).

        Sigma itself is returned if the model is continuous, or not trained there.
        """
        if self.trained is None or not self.covers(sigma):
            return sigma
        above = bisect(self.trained, sigma)
        return min(self.trained[max(above - 1, 0) : above + 1], key=lambda level: abs(math.log(level / sigma)))


class Schedule(Protocol):
    """Scale and label of a network's input at a noise level; sigma is () or (batch,)."""

    @property
    def levels(self) -> NoiseLevels:
        """Trained range of sigma."""

    def scale(self, sigma: Tensor) -> Tensor:
        """Return the factor on `x` at the network's input (alpha, or Karras' c_in)."""

    def label(self, sigma: Tensor) -> Tensor:
        """Return the network's native time at this sigma."""


def check_steps(steps: Any) -> None:
    """Check the number of steps of a discrete-time model, before a table is made.

    Raises:
        InputError: If it is no whole number from 2 to 10000.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or not 2 <= steps <= STEPS:
        raise InputError(f"a variance-preserving schedule has 2 to {STEPS} steps, not {one_line(steps, 40)}")


@dataclass(frozen=True)
class VariancePreserving:
    """Discrete variance-preserving schedule from betas (DDPM, Ho et al. 2020).

    The label is the step index.

    Raises:
        InputError: If there are not 2 to 10000 betas between 0 and 1.
    """

    betas: tuple[float, ...]
    sigmas: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_steps(len(self.betas))
        betas = torch.tensor(self.betas, dtype=torch.float64)
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise InputError("a variance-preserving schedule needs betas between 0 and 1")
        product = torch.cumprod(1 - betas, 0)
        object.__setattr__(self, "sigmas", ((1 - product) / product).sqrt())

    @classmethod
    def squaredcos(cls, steps: int, max_beta: float = 0.999) -> VariancePreserving:
        """Make the cosine schedule of Nichol & Dhariwal 2021 (`squaredcos_cap_v2`).

        It is the default of Diffusion Policy.
        """
        check_steps(steps)

        def product(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        pairs = [(k / steps, (k + 1) / steps) for k in range(steps)]
        return cls(tuple(min(1 - product(b) / product(a), max_beta) for a, b in pairs))

    @property
    def levels(self) -> NoiseLevels:
        """All trained levels."""
        sigmas = tuple(self.sigmas.tolist())
        return NoiseLevels(sigmas[0], sigmas[-1], sigmas)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return alpha = 1 / sqrt(1 + sigma^2)."""
        return (1 + sigma * sigma).rsqrt()

    def label(self, sigma: Tensor) -> Tensor:
        """Return the index of the trained level nearest to sigma."""
        table = self.sigmas.to(sigma.device).log()
        return (sigma.log().unsqueeze(-1) - table).abs().argmin(-1)


@dataclass(frozen=True)
class LinearFlow:
    """Rectified flow `x_t = (1 - t) x0 + t noise`; the label is t.

    Liu et al. 2022, Lipman et al. 2022. `reverse` is for models that count time from noise (t = 0) to data (t = 1).
    """

    t_min: float = 0.001
    t_max: float = 1.0
    reverse: bool = False

    @property
    def levels(self) -> NoiseLevels:
        """Trained range: sigma = t / (1 - t)."""
        sigma_max = math.inf if self.t_max >= 1 else self.t_max / (1 - self.t_max)
        return NoiseLevels(self.t_min / (1 - self.t_min), sigma_max)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return alpha = 1 - t = 1 / (1 + sigma)."""
        return 1 / (1 + sigma)

    def label(self, sigma: Tensor) -> Tensor:
        """Return t = sigma / (1 + sigma), or 1 - t if `reverse`."""
        return 1 / (1 + sigma) if self.reverse else sigma / (1 + sigma)


@dataclass(frozen=True)
class Karras:
    """Variance-exploding path with Karras preconditioning (EDM).

    Karras et al. 2022, table 1.
    """

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def levels(self) -> NoiseLevels:
        """Trained range."""
        return NoiseLevels(self.sigma_min, self.sigma_max)

    def scale(self, sigma: Tensor) -> Tensor:
        """Return c_in = 1 / sqrt(sigma^2 + sigma_data^2)."""
        return (sigma * sigma + self.sigma_data**2).rsqrt()

    def label(self, sigma: Tensor) -> Tensor:
        """Return c_noise = log(sigma) / 4."""
        return sigma.log() / 4


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return descending levels and a final zero, (steps + 1,).

    Karras et al. 2022, eq. 5.

    Raises:
        InputError: If `steps` is less than 1.
    """
    if steps < 1:
        raise InputError(f"a sampler needs at least one step, not {steps}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def trained_sigmas(levels: NoiseLevels, steps: int | None = None) -> Tensor:
    """Return trained levels evenly spaced in index, descending, and a final zero.

    Args:
        levels: Levels of a discrete-time model.
        steps: Number of levels; by default all.

    Raises:
        InputError: If the model is continuous, or has fewer levels.
    """
    count = len(levels.trained or ())
    steps = count if steps is None else steps
    return _trained(levels, torch.linspace(count - 1, 0, steps, dtype=torch.float64).round().long().tolist())


def spaced_sigmas(levels: NoiseLevels, steps: int, spacing: str) -> Tensor:
    """Return trained levels as diffusers spaces them, descending, and a final zero.

    Args:
        levels: Levels of a discrete-time model.
        steps: Number of levels.
        spacing: One of `SPACINGS`.

    Raises:
        InputError: If the model is continuous, or has fewer levels.
    """
    count = len(levels.trained or ())
    match spacing:
        case "leading":
            index = [i * (count // steps) for i in reversed(range(steps))]
        case "trailing":
            index = [round(count - i * count / steps) - 1 for i in range(steps)]
        case _:
            index = torch.linspace(0, count - 1, steps, dtype=torch.float64).round().flip(0).long().tolist()
    return _trained(levels, index)


def _trained(levels: NoiseLevels, index: Sequence[int]) -> Tensor:
    if levels.trained is None:
        raise InputError("this model is continuous in sigma and has no trained levels; use a Karras grid")
    count = len(levels.trained)
    if not 1 <= len(index) <= count:
        raise InputError(f"steps={len(index)}: this model has {count} trained levels, choose 1 to {count}")
    return torch.tensor([levels.trained[i] for i in index] + [0.0], dtype=torch.float64)


def exponential_sigmas(steps: int, sigma_min: float, sigma_max: float) -> Tensor:
    """Return levels evenly spaced in log sigma, descending, and a final zero."""
    even = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64).exp()
    return torch.cat([even, torch.zeros(1, dtype=torch.float64)])


def flow_sigmas(steps: int) -> Tensor:
    """Return the levels of t = 1, 1 - 1 / steps, ..., 0, a flow's uniform grid."""
    t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (t / (1 - t)).clamp(max=FLOW_START)


def snap_sigmas(sigmas: Tensor, levels: NoiseLevels) -> Tensor:
    """Move a descending grid onto trained levels, without repeats.

    The grid of a continuous model stays as it is.
    """
    snapped = [levels.snap(s) for s in sigmas.tolist() if s > 0]
    distinct = [s for i, s in enumerate(snapped) if i == 0 or s < snapped[i - 1] * (1 - SAME_LEVEL)]
    return torch.tensor([*distinct, 0.0], dtype=torch.float64)


def merge_levels(levels: Sequence[NoiseLevels]) -> NoiseLevels:
    """Return the range in which all models were trained.

    Its discrete levels are those of the first discrete model.

    Raises:
        InputError: If the models share no range, or two discrete models share no grid: at a level of the first, inside the
            range of both, the second has no trained level within `NEAR_LEVEL`.
    """
    low, high = max(item.sigma_min for item in levels), min(item.sigma_max for item in levels)
    if low >= high:
        ranges = "; ".join(f"{item.sigma_min:.4g} to {item.sigma_max:.4g}" for item in levels)
        raise InputError(f"the policies share no range of sigma ({ranges})")
    shared = NoiseLevels(low, high)
    discrete = [item for item in levels if item.trained is not None]
    if not discrete:
        return shared
    trained = tuple(s for s in discrete[0].trained or () if shared.covers(s))
    for other in discrete[1:]:
        far = [s for s in trained if abs(other.snap(s) / s - 1) > NEAR_LEVEL]
        if far:
            raise InputError(
                "two discrete-time policies were trained on different noise levels "
                f"({_grid(discrete[0])}; {_grid(other)}; none of the second within {NEAR_LEVEL:.0%} of {far[0]:.4g}); "
                "compose each with a continuous-time policy instead"
            )
    if not trained:
        raise InputError(
            f"none of the {len(discrete[0].trained or ())} trained levels of a discrete policy lies in {low:.4g} to {high:.4g}"
        )
    return NoiseLevels(low, high, trained)


def _grid(levels: NoiseLevels) -> str:
    return f"{len(levels.trained or ())} from {levels.sigma_min:.4g} to {levels.sigma_max:.4g}"
