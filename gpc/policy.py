"""What a policy is: specs of its actions and observations, its noise levels, and `condition`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.denoise import Denoiser
from gpc.errors import InputError
from gpc.noise import NoiseLevels

Observation = Mapping[str, Tensor]
"""key -> (batch, n_obs_steps, *shape)."""


@dataclass(frozen=True)
class ActionSpec:
    """What a policy's chunk means: `action = scale * x + offset` at times `(start + i) * dt`, i = 0 .. horizon - 1.

    `start` counts from the newest observation (Diffusion Policy's chunks begin at the oldest: start = 1 - n_obs_steps).
    `scale` and `offset` hold one number per action dimension, in the environment's units; `bound` limits |x|, if the
    policy was trained with clipped actions; `dt` is in control steps of the environment.
    """

    horizon: int
    names: tuple[str, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    start: int = 0
    dt: float = 1.0
    bound: float | None = None

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.scale) == len(self.offset):
            raise InputError(
                f"action spec: {len(self.names)} names, {len(self.scale)} scales, {len(self.offset)} offsets; give one each"
            )
        if self.horizon < 1 or self.dt <= 0 or not all(s > 0 and np.isfinite(s) for s in self.scale):
            raise InputError(f"action spec: horizon, dt and every scale must be positive: {self}")

    @property
    def dim(self) -> int:
        """Number of action dimensions."""
        return len(self.names)

    def decode(self, x: Tensor) -> Tensor:
        """Normalised x (..., dim) -> action in the environment's units."""
        return x * x.new_tensor(self.scale) + x.new_tensor(self.offset)

    def encode(self, action: Tensor) -> Tensor:
        """Action in the environment's units (..., dim) -> normalised x."""
        return (action - action.new_tensor(self.offset)) / action.new_tensor(self.scale)


@dataclass(frozen=True)
class ObservationSpec:
    """The observation keys a policy reads, the shape of each at one time, and how many times it sees."""

    shapes: Mapping[str, tuple[int, ...]]
    n_obs_steps: int

    def check(self, observation: Observation) -> None:
        """Raise InputError naming the first key that is missing or has another shape."""
        for key, shape in self.shapes.items():
            if key not in observation:
                raise InputError(f"observation has no {key!r}; it has {', '.join(sorted(observation)) or 'nothing'}")
            found = tuple(observation[key].shape[1:])
            if found != (self.n_obs_steps, *shape):
                raise InputError(
                    f"observation {key!r} has shape {found}, the policy wants {(self.n_obs_steps, *shape)}"
                )


class Policy(Protocol):
    """A pretrained policy behind the one coordinate."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def actions(self) -> ActionSpec:
        """Meaning of a chunk."""

    @property
    def observations(self) -> ObservationSpec:
        """What it reads."""

    @property
    def levels(self) -> NoiseLevels:
        """Where it was trained."""

    @property
    def fingerprint(self) -> str:
        """A hash of weights and normalisers, for run manifests."""

    def condition(self, observation: Observation) -> Denoiser:
        """Encode one batch of observations; the denoiser may then be called many times."""


def observation_tensors(
    observation: Mapping[str, npt.NDArray[Any]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Arrays as tensors on a device: numbers as float32, images as they are (uint8)."""
    return {
        key: torch.from_numpy(value if value.dtype == np.uint8 else value.astype(np.float32)).to(device)
        for key, value in observation.items()
    }
