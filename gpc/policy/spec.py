"""What a policy is: specs of its actions and observations, its noise levels, and `condition`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.errors import InputError, one_line
from gpc.policy.env_spec import EnvSpec
from gpc.score.denoiser import Denoiser
from gpc.score.noise import NoiseLevels

LONGEST, DIMENSIONS = 4096, 1024  # steps of a chunk; of an action
KEYS, STEPS, NUMBERS = 256, 1024, 2**24  # of an observation; steps in its history; numbers in one key at one time
NAME = 200  # characters of a key or of an action's dimension

Observation = Mapping[str, Tensor]
"""key -> (batch, n_obs_steps, *shape)."""


def is_whole(value: object, most: int, least: int = 0) -> bool:
    """Whether a value is a whole number from `least` to `most`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= int(value) <= most


@dataclass(frozen=True)
class ActionSpec:
    """What a policy's chunk means: `action = scale * x + offset` at times `(start + i) * dt`, i = 0 .. horizon - 1.

    `start` counts from the newest observation (Diffusion Policy's chunks begin at the oldest: start = 1 - n_obs_steps).
    `scale` and `offset` hold one number per action dimension, in the environment's units; `bound` limits |x|, if the
    policy was trained with clipped actions; `dt` is in control steps of the environment; `names` is None where the
    checkpoint does not say what its dimensions are; `relative`: moves (delta actions), or absolute targets. The limits hold
    for every policy, whether a file or a server describes it: nothing larger is ever allocated for a chunk.
    """

    horizon: int
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    names: tuple[str, ...] | None = None
    start: int = 0
    dt: float = 1.0
    bound: float | None = None
    relative: bool | None = None

    def __post_init__(self) -> None:
        counts = [len(field) for field in (self.scale, self.offset, self.names) if field is not None]
        if len(set(counts)) != 1:
            raise InputError(
                f"action spec: one scale, offset and name per dimension, not {', '.join(map(str, counts))} of them"
            )
        if self.names is not None and len(set(self.names)) != len(self.names):
            raise InputError(f"action spec: two dimensions have the same name: {', '.join(self.names)}")
        if self.horizon < 1 or not self.dt > 0 or not all(s > 0 and np.isfinite(s) for s in self.scale):
            raise InputError(f"action spec: horizon, dt and every scale must be positive: {one_line(self)}")
        whole = is_whole(self.horizon, LONGEST) and is_whole(abs(self.start), LONGEST)
        if not whole or self.start + self.horizon > LONGEST or not 1 <= self.dim <= DIMENSIONS:
            raise InputError(
                f"action spec: horizon and start are whole numbers up to {LONGEST}, dimensions at most {DIMENSIONS}: "
                f"{one_line(self)}"
            )
        limits = (self.dt, *self.offset, 1.0 if self.bound is None else self.bound)
        if not np.isfinite(limits).all() or not limits[-1] > 0:
            raise InputError(f"action spec: dt, every offset and bound are finite, bound is positive: {one_line(self)}")
        if not all(isinstance(name, str) and len(name) <= NAME for name in self.names or ()):
            raise InputError(f"action spec: names are texts of at most {NAME} characters: {one_line(self)}")

    @property
    def dim(self) -> int:
        """Number of action dimensions."""
        return len(self.scale)

    @property
    def shape(self) -> tuple[int, int]:
        """(horizon, action) of a chunk."""
        return self.horizon, self.dim

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

    def __post_init__(self) -> None:
        if len(self.shapes) > KEYS or not is_whole(self.n_obs_steps, STEPS, 1):
            raise InputError(f"observation spec: at most {KEYS} keys and 1 to {STEPS} steps, not {one_line(self)}")
        for key, shape in self.shapes.items():
            fits = isinstance(shape, tuple) and all(is_whole(n, NUMBERS) for n in shape) and prod(shape) <= NUMBERS
            if not isinstance(key, str) or len(key) > NAME or not fits:
                raise InputError(
                    f"observation spec: names have at most {NAME} characters, shapes at most {NUMBERS} numbers, not "
                    f"{one_line(f'{key!r} {shape}')}"
                )

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


@runtime_checkable
class Centred(Protocol):
    """A policy whose actions may lie far from 0, around something that the observation says."""

    def centre(self, observation: Observation) -> Tensor | None:
        """Where, normalised: to be broadcast over chunks (batch, horizon, action); None is 0."""


def centre_of(policy: Policy, observation: Observation) -> Tensor | None:
    """Around what its chunks are to be sampled, see `Centred`."""
    return policy.centre(observation) if isinstance(policy, Centred) else None


@runtime_checkable
class Simulated(Protocol):
    """A policy that knows the simulator it was trained for."""

    @property
    def simulator(self) -> EnvSpec | None:
        """How to build it; None where the checkpoint does not say, or not in a way that gpc knows."""


def observation_tensors(
    observation: Mapping[str, npt.NDArray[Any]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Arrays as tensors on a device: numbers as float32, images as they are (uint8)."""
    return {
        key: torch.from_numpy(value if value.dtype == np.uint8 else value.astype(np.float32)).to(device)
        for key, value in observation.items()
    }
