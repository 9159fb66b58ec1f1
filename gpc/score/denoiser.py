"""Denoisers: the one primitive, `denoised(x, sigma) = E[x0 | x]`.

The score is `(denoised - x) / sigma^2`, the probability-flow ODE `dx/dsigma = (x - denoised) / sigma`.
A wrapper of a denoiser is a denoiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor

from gpc.errors import InputError, RunError
from gpc.score.keyed_noise import NoiseKeys
from gpc.score.noise import Karras, Schedule

Network = Callable[..., Tensor]
"""(scaled x (batch, horizon, action), label (batch,), *condition) -> same as x."""


def no_grad(network: Network) -> Network:
    """Run a network in inference mode, whichever thread calls it."""

    def call(x: Tensor, label: Tensor, *condition: Any) -> Tensor:
        with torch.inference_mode():
            return network(x, label, *condition)

    return call


Prediction = Literal["noise", "sample", "v", "velocity", "reverse_velocity", "edm"]


class Denoiser(Protocol):
    """E[x0 | x] for one batch of observations, which are encoded already."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks.

        Args:
            x: Noisy chunks (batch, horizon, action), float64, normalised.
            sigma: Noise level, () or (batch,).

        Returns:
            E[x0 | x], like x.
        """


@runtime_checkable
class Starts(Protocol):
    """A denoiser, or a network, that may compute on another device."""

    def start(self, x: Tensor, sigma: Tensor, /, *condition: Any) -> Callable[[], Tensor]:
        """Begin a call; the function that is returned waits for its result."""


def start(call: Callable[..., Tensor], *arguments: Any) -> Callable[[], Tensor]:
    """Begin a call of a denoiser or a network.

    Returns:
        A function that waits for the result; what cannot wait was computed already.
    """
    begin: Callable[..., Callable[[], Tensor]] | None = getattr(call, "start", None)  # a protocol's isinstance is slow
    if begin is not None:
        return begin(*arguments)
    out = call(*arguments)
    return lambda: out


@runtime_checkable
class TakesNoiseKeys(Protocol):
    """A denoiser that draws noise of its own, or wraps one that may."""

    def with_noise_keys(self, keys: NoiseKeys) -> Denoiser:
        """Return the denoiser with its noise drawn from a key for each row of x."""


def with_noise_keys(denoiser: Denoiser, keys: NoiseKeys) -> Denoiser:
    """Hand noise keys to a denoiser.

    A denoiser that takes none is returned as it is.
    """
    return denoiser.with_noise_keys(keys) if isinstance(denoiser, TakesNoiseKeys) else denoiser


def columns(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape sigma () or (batch,) so that it broadcasts over `like` (batch, ...)."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network of any prediction type, as a denoiser.

    The network runs in `dtype`. The state keeps the dtype of x, which is float64 in the samplers: a cosine schedule of
    100 steps reaches sigma = 2029, where float32 is off by 3e-3. `out` is the output of the network for `scale * x`:

    | prediction | denoised |
    |---|---|
    | noise | x - sigma out |
    | sample | out |
    | v | alpha (alpha x - sigma out) (Salimans & Ho 2022) |
    | velocity (noise - x0) | alpha (x - sigma out) |
    | reverse_velocity (x0 - noise) | alpha (x + sigma out) |
    | edm | c_skip x + c_out out (Karras et al. 2022, eq. 7) |

    Attributes:
        network: The network.
        schedule: Noise schedule of its training.
        prediction: What it returns.
        dtype: Of x and label as the network gets them.
        condition: Encoded observations, the network's further arguments: trees (tuples, lists, dicts) of tensors with one
            row for each observation. A network with a condition depends on the observation through it alone, so that one
            recording serves every observation (`gpc.inference.device`).

    Raises:
        InputError: If the prediction type is unknown, or "edm" without a Karras schedule.
    """

    network: Network
    schedule: Schedule
    prediction: Prediction
    dtype: torch.dtype = torch.float32
    condition: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise InputError(f"unknown prediction {self.prediction!r}; choose one of {', '.join(get_args(Prediction))}")
        if self.prediction == "edm" and not isinstance(self.schedule, Karras):
            raise InputError("prediction 'edm' is Karras preconditioning; give it a Karras schedule")

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`."""
        return self.start(x, sigma)()

    def start(self, x: Tensor, sigma: Tensor) -> Callable[[], Tensor]:
        """Begin to denoise, see `Starts`."""
        label = self.schedule.label(sigma).expand(len(x))
        label = label.to(self.dtype) if label.is_floating_point() else label
        s = columns(sigma, x)
        alpha = self.schedule.scale(s)
        finish = start(self.network, (alpha * x).to(self.dtype), label, *self.condition)
        return lambda: self._denoised(x, s, alpha, finish().to(x))

    def _denoised(self, x: Tensor, s: Tensor, alpha: Tensor, out: Tensor) -> Tensor:
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
class Wrapper:
    """Base of denoisers around another denoiser, to which they hand noise keys."""

    denoiser: Denoiser

    def with_noise_keys(self, keys: NoiseKeys) -> Self:
        """Hand noise keys to the inner denoiser."""
        return replace(self, denoiser=with_noise_keys(self.denoiser, keys))


def computes_elsewhere(denoiser: Denoiser) -> bool:
    """Return whether `start` of a denoiser leaves its network to a device."""
    while isinstance(denoiser, Wrapper) and hasattr(denoiser, "start"):
        denoiser = denoiser.denoiser
    return isinstance(denoiser, NetworkDenoiser) and hasattr(denoiser.network, "start")


@dataclass(frozen=True)
class After(Wrapper, ABC):
    """Base of wrappers that change or check the denoised action alone."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`."""
        return self.after(self.denoiser(x, sigma), sigma)

    def start(self, x: Tensor, sigma: Tensor) -> Callable[[], Tensor]:
        """Begin to denoise, see `Starts`."""
        finish = start(self.denoiser, x, sigma)
        return lambda: self.after(finish(), sigma)

    @abstractmethod
    def after(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """Return what becomes of the denoised action."""


@dataclass(frozen=True)
class Clamp(After):
    """Keep the denoised action within +-bound.

    This is DDPM's `clip_sample` if it is put around the composed denoiser.
    """

    bound: float

    def after(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised action within the bound."""
        return self.clip(denoised)

    def clip(self, denoised: Tensor) -> Tensor:
        """Return a denoised action within the bound."""
        return denoised.clamp(-self.bound, self.bound)


@dataclass(frozen=True)
class Translated(Wrapper):
    """Denoise actions that are translated by `offset`: D(x - offset) + offset.

    Attributes:
        offset: Like x, or broadcast over it; normalised.
    """

    offset: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`."""
        offset = self.offset.to(x)
        return self.denoiser(x - offset, sigma) + offset


@dataclass(frozen=True)
class Inpainted(Wrapper):
    """Draw the denoised action to a target chunk, e.g. the one being executed.

    The target acts as one more member of a convex composition, with a weight for each step: at weight 1 the step equals
    the target under every sampler. This is inpainting of `denoised`, without the guidance by gradients of real-time
    chunking (Black et al. 2025, arXiv 2506.07339).

    Attributes:
        target: (batch, horizon, action), normalised.
        mask: Weight of the target from 0 to 1, (horizon,) or (batch, horizon).
    """

    target: Tensor
    mask: Tensor

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks, see `Denoiser`."""
        out = self.denoiser(x, sigma)
        return out + self.mask[..., None] * (self.target - out)


@dataclass(frozen=True)
class CheckFinite(After):
    """Check that the output of a policy has no NaN or infinity.

    Attributes:
        name: The policy's name, for the error.
    """

    name: str

    def after(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised action.

        Raises:
            RunError: If it has a NaN or an infinity.
        """
        if not isfinite(float(denoised.sum())):  # a sum of finite outputs is finite
            raise RunError(
                f"policy {self.name!r} returned NaN or infinity at sigma={sigma.max().item():.4g}; "
                "its weights are damaged or its observation is out of range"
            )
        return denoised
