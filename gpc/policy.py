"""What a policy is: specs of its actions and observations, its noise levels, and `condition`."""

from __future__ import annotations

import json
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
    policy was trained with clipped actions; `dt` is in control steps of the environment; `names` is None where the
    checkpoint does not say what its dimensions are.
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
        if self.horizon < 1 or self.dt <= 0 or not all(s > 0 and np.isfinite(s) for s in self.scale):
            raise InputError(f"action spec: horizon, dt and every scale must be positive: {self}")

    @property
    def dim(self) -> int:
        """Number of action dimensions."""
        return len(self.scale)

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


@dataclass(frozen=True)
class Renamed:
    """A policy that reads its observations under an environment's keys: `keys[own] = theirs`; others keep their name."""

    policy: Policy
    keys: Mapping[str, str]

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def actions(self) -> ActionSpec:
        """The policy's."""
        return self.policy.actions

    @property
    def levels(self) -> NoiseLevels:
        """The policy's."""
        return self.policy.levels

    @property
    def observations(self) -> ObservationSpec:
        """The policy's, under the environment's keys."""
        spec = self.policy.observations
        return ObservationSpec({self.keys.get(k, k): shape for k, shape in spec.shapes.items()}, spec.n_obs_steps)

    @property
    def fingerprint(self) -> str:
        """The policy's, with the keys that are renamed."""
        used = {own: self.keys[own] for own in sorted(self.policy.observations.shapes) if own in self.keys}
        return f"{self.policy.fingerprint} {json.dumps(used)}"

    def condition(self, observation: Observation) -> Denoiser:
        """See `Policy`."""
        return self.policy.condition({k: observation[self.keys.get(k, k)] for k in self.policy.observations.shapes})


def rename(policy: Policy, keys: Mapping[str, str]) -> Policy:
    """The policy under an environment's keys; itself where it reads none of the renamed ones.

    Raises InputError where two of its keys would become one.
    """
    own = policy.observations.shapes
    if not any(key in keys for key in own):
        return policy
    theirs = [keys.get(key, key) for key in own]
    twice = sorted({key for key in theirs if theirs.count(key) > 1})
    if twice:
        raise InputError(f"rename_map gives {policy.name} the key {twice[0]!r} for more than one of {', '.join(own)}")
    return Renamed(policy, keys)


def observation_tensors(
    observation: Mapping[str, npt.NDArray[Any]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Arrays as tensors on a device: numbers as float32, images as they are (uint8)."""
    return {
        key: torch.from_numpy(value if value.dtype == np.uint8 else value.astype(np.float32)).to(device)
        for key, value in observation.items()
    }
