"""Denoisers: the one primitive, `denoised(x, sigma) = E[x0 | x]`.

The score and the probability-flow ODE follow from it: `score = (denoised - x) / sigma^2`,
`dx/dsigma = (x - denoised) / sigma`. What wraps a denoiser is a denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from gpc.errors import InputError, RunError
from gpc.score.noise import Karras, Schedule

Network = Callable[[Tensor, Tensor], Tensor]
"""A network with its observation already bound: (scaled x (batch, horizon, action), label (batch,)) -> same as x."""


def no_grad(network: Network) -> Network:
    """The network without gradients, in whatever thread it is called."""

    def call(x: Tensor, label: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(x, label)

    return call


Prediction = Literal["noise", "sample", "v", "velocity", "reverse_velocity", "edm"]


class Denoiser(Protocol):
    """One batch of observations, already encoded."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x (batch, horizon, action) float64, sigma () or (batch,) -> E[x0 | x], like x."""


def columns(sigma: Tensor, like: Tensor) -> Tensor:
    """Sigma () or (batch,), shaped to broadcast over `like` (batch, ...)."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network of any prediction type, as a denoiser.

    The network runs in `dtype`, the state stays in x's own dtype (float64 in the samplers: a cosine schedule of 100
    steps reaches sigma = 2029, where float32 is off by 3e-3). `out` is what the network returns for `scale * x`:

    | prediction | denoised |
    |---|---|
    | noise | x - sigma out |
    | sample | out |
    | v | alpha (alpha x - sigma out) (Salimans & Ho 2022) |
    | velocity (noise - x0) | alpha (x - sigma out) |
    | reverse_velocity (x0 - noise) | alpha (x + sigma out) |
    | edm | c_skip x + c_out out (Karras et al. 2022, eq. 7) |
    """

    network: Network
    schedule: Schedule
    prediction: Prediction
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputError(f"unknown prediction {self.prediction!r}; choose one of {', '.join(get_args(Prediction))}")
        if self.prediction == "edm" and not isinstance(self.schedule, Karras):
            raise InputError("prediction 'edm' is Karras preconditioning; give it a Karras schedule")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        label = self.schedule.label(sigma).expand(len(x))
        label = label.to(self.dtype) if label.is_floating_point() else label
        s = columns(sigma, x)
        alpha = self.schedule.scale(s)
        out = self.network((alpha * x).to(self.dtype), label).to(x.dtype)
        match self.prediction:
            case "noise":
                return x - s * out
            case "sample":
                return out
            case "v":
                return alpha * (alpha * x - s * out)
            case "velocity":
                return alpha * (x - s * out)
            case "reverse_velocity":
                return alpha * (x + s * out)
            case "edm":
                assert isinstance(self.schedule, Karras)
                data = self.schedule.sigma_data
                return alpha**2 * data**2 * x + alpha * s * data * out


@dataclass(frozen=True)
class Clamp:
    """Keep the denoised action within +-bound (DDPM's `clip_sample`; put it around the composed denoiser)."""

    denoiser: Denoiser
    bound: float

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        return self.denoiser(x, sigma).clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Translated:
    """The denoiser of actions that lie `by` further: D(x - by) + by."""

    denoiser: Denoiser
    by: Tensor  # like x, or to be broadcast over it

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        by = self.by.to(x)
        return self.denoiser(x - by, sigma) + by


@dataclass(frozen=True)
class Inpainted:
    """Draw the denoised action to steps that are known already: a chunk that goes on from one being executed.

    The known chunk acts as one more member of a convex composition, with a weight for each step: at weight 1 the step comes
    out as it is known, whatever the sampler. That is inpainting of `denoised`, without the guidance by gradients of
    real-time chunking (Black et al. 2025, arXiv 2506.07339).
    """

    denoiser: Denoiser
    known: Tensor  # (batch, horizon, action), normalised
    weight: Tensor  # (horizon,) or (batch, horizon), 0 to 1

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        out = self.denoiser(x, sigma)
        return out + self.weight[..., None] * (self.known - out)


@dataclass(frozen=True)
class CheckFinite:
    """Refuse to go on from a NaN or an infinity, naming the policy that produced it."""

    denoiser: Denoiser
    name: str

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`; raises RunError."""
        out = self.denoiser(x, sigma)
        if not bool(torch.isfinite(out).all()):
            raise RunError(
                f"policy {self.name!r} returned NaN or infinity at sigma={sigma.max().item():.4g}; "
                "its weights are damaged or its observation is out of range"
            )
        return out
