"""The protocol of a policy: specs of actions and observations, noise levels, `condition`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.errors import InputError, one_line
from gpc.policy.env_spec import EnvSpec
from gpc.policy.observation import NAME, TASK, conform
from gpc.score.denoiser import Denoiser
from gpc.score.noise import NoiseLevels

LONGEST, DIMENSIONS = 4096, 1024  # steps of a chunk; of an action
EPS = float(np.finfo(np.float32).eps)
KEYS, STEPS, NUMBERS = 256, 1024, 2**24  # of an observation; steps in its history; numbers in one key at one time
CONSTANT = 1e-8  # a scale by which no action differs; LeRobot puts 5e-9 and 0, BESO 1e-12 for data without a range

Dtype = Literal["bfloat16"]
Observation = Mapping[str, Tensor]
"""key -> (batch, n_obs_steps, *shape)."""


def is_whole(value: object, most: int, least: int = 0) -> bool:
    """Return whether a value is a whole number from `least` to `most`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and least <= int(value) <= most


@dataclass(frozen=True)
class ActionSpec:
    """The meaning of a chunk x (horizon, dim).

    Step i is the action `scale * x[i] + offset` at the time `(start + i) * dt`. The limits hold for every policy, from
    a file or from a server, so that no larger chunk is ever allocated.

    Attributes:
        horizon: steps of a chunk.
        scale: one number for each dimension, in the environment's units; 0 or hardly more if the dimension is constant
            in the data.
        offset: one number for each dimension, in the environment's units.
        names: names of the dimensions; None if the checkpoint has none.
        start: first step, counted from the newest observation. Chunks of Diffusion Policy begin at the oldest one:
            1 - n_obs_steps.
        dt: period of a step, in control steps of the environment.
        bound: limit of |x|, if the policy was trained with clipped actions.
        relative: whether actions are moves (delta actions) or absolute targets; None if the checkpoint does not declare
        it.

    Raises:
        InputError: If a field is out of bounds, or numbers of dimensions differ.
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
        if self.horizon < 1 or not self.dt > 0 or not all(s >= 0 and np.isfinite(s) for s in self.scale):
            raise InputError(
                f"action spec: horizon and dt must be positive, every scale positive or, of a constant, 0: {one_line(self)}"
            )
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
        """Shape of a chunk, (horizon, dim)."""
        return self.horizon, self.dim

    @cached_property
    def constants(self) -> tuple[float | None, ...]:
        """The x of each constant dimension in the training data; None of the others.

        Actions differ there by less than `CONSTANT`, or than float32 resolves. The x is -1, the least value of
        normalisers by range, which put a tiny scale for 0; with a scale of 0 it is 0.
        """
        tiny = (s <= max(CONSTANT, EPS * abs(o)) for s, o in zip(self.scale, self.offset, strict=True))
        return tuple((-1.0 if s > 0 else 0.0) if flat else None for s, flat in zip(self.scale, tiny, strict=True))

    def decode(self, x: Tensor) -> Tensor:
        """Convert normalised x (..., dim) to actions in the environment's units."""
        return x * x.new_tensor(self.scale) + x.new_tensor(self.offset)

    def encode(self, action: Tensor) -> Tensor:
        """Convert actions in the environment's units (..., dim) to normalised x.

        A constant dimension has its x in the training data, whatever the action is.
        """
        x = (action - action.new_tensor(self.offset)) / action.new_tensor(self.scale)
        for dim, constant in enumerate(self.constants):
            if constant is not None:
                x[..., dim] = constant
        return x


@dataclass(frozen=True)
class ObservationSpec:
    """The observation keys that a policy reads.

    Attributes:
        shapes: key -> shape at one time.
        n_obs_steps: number of newest observations that the policy reads.
        images: keys that are images (height, width, channels), uint8; by default those of shape (height, width, 3). All
            others but `TASK`, an instruction, are numbers, float32.

    Raises:
        InputError: If there are too many keys, steps or numbers, or an image is no key of three dimensions.
    """

    shapes: Mapping[str, tuple[int, ...]]
    n_obs_steps: int
    images: Collection[str] = cast(Collection[str], None)

    def __post_init__(self) -> None:
        if len(self.shapes) > KEYS or not is_whole(self.n_obs_steps, STEPS, 1):
            raise InputError(f"observation spec: at most {KEYS} keys and 1 to {STEPS} steps, not {one_line(self)}")
        for key, shape in self.shapes.items():
            fits = isinstance(shape, tuple) and all(is_whole(n, NUMBERS) for n in shape) and prod(shape) <= NUMBERS
            if not isinstance(key, str) or len(key) > NAME or not fits or (key == TASK and len(shape) != 1):
                raise InputError(
                    f"observation spec: names have at most {NAME} characters, shapes at most {NUMBERS} numbers, not "
                    f"{one_line(f'{key!r} {shape}')}"
                )
        images = self.images
        if images is None:
            images = [key for key, shape in self.shapes.items() if len(shape) == 3 and shape[-1] == 3]
        for key in images:
            if len(self.shapes.get(key, ())) != 3:
                raise InputError(
                    f"observation spec: the image {one_line(repr(key), 80)} must be one of the keys, of shape (height, width, "
                    f"channels): {one_line(self)}"
                )
        object.__setattr__(self, "images", frozenset(images))

    def _dtype(self, key: str) -> torch.dtype:
        return torch.uint8 if key in self.images or key == TASK else torch.float32

    def conform(self, key: str, value: Any) -> npt.NDArray[Any]:
        """Convert the value of one key, see `gpc.policy.observation.conform`."""
        if isinstance(value, Tensor):
            value = (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
        return conform(key, value, self.shapes[key], key in self.images)

    def plain(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return an observation of one number, without an instruction.

        Its arrays are (n_obs_steps, *shape).
        """
        return {
            key: self.conform(key, np.full((self.n_obs_steps, *shape), 0 if key == TASK else number, np.uint8))
            for key, shape in self.shapes.items()
        }

    def read(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """Convert a batch of observations to what the policy reads.

        Args:
            observation: key -> array or tensor (batch, n_obs_steps or more, *shape).

        Returns:
            The policy's keys, their last `n_obs_steps` steps: images uint8 with channels last, numbers float32.

        Raises:
            InputError: If a key is missing, of another shape, or beyond the range of an image.
        """
        missing = sorted(self.shapes.keys() - observation.keys())
        if missing:
            raise InputError(f"observation has no {missing[0]!r}; it has {', '.join(sorted(observation)) or 'nothing'}")
        return {key: self._tensor(key, observation[key]) for key in self.shapes}

    def _tensor(self, key: str, value: Any) -> Tensor:
        steps, shape = self.n_obs_steps, self.shapes[key]
        if isinstance(value, Tensor) and value.dtype == self._dtype(key) and value.shape[1:] == (steps, *shape):
            return value if value.is_contiguous() else value.contiguous()  # read already, maybe on a device
        array = self.conform(key, value)
        if array.ndim != 2 + len(shape) or array.shape[1] < steps:
            raise InputError(
                f"observation {key!r} has shape {array.shape}, the policy wants (batch, {steps}, *{shape})"
            )
        device = value.device if isinstance(value, Tensor) else None
        return torch.from_numpy(np.require(array[:, -steps:], requirements=["C", "W"])).to(device)


class Policy(Protocol):
    """A pretrained policy as a denoiser of action chunks."""

    @property
    def name(self) -> str:
        """Name in reports."""

    @property
    def actions(self) -> ActionSpec:
        """Meaning of a chunk."""

    @property
    def observations(self) -> ObservationSpec:
        """Observation keys that the policy reads."""

    @property
    def levels(self) -> NoiseLevels:
        """Noise levels of the training."""

    @property
    def fingerprint(self) -> str:
        """Hash of weights and normalisers, for run manifests."""

    def condition(self, observation: Observation) -> Denoiser:
        """Encode a batch of observations; the denoiser may be called many times."""


def policy_repr(policy: Policy, detail: str = "") -> str:
    """Return a policy on one line of at most 118 characters.

    Args:
        policy: a policy.
        detail: what is shown of it; by default its actions and what it reads.
    """
    from gpc.inert import LONGEST_REPR, short  # rich is loaded if something is shown

    if not detail:
        chunk, reads = f"{policy.actions.horizon} x {policy.actions.dim} actions", ", ".join(policy.observations.shapes)
        detail = f"{chunk} from {short(reads, 36)}"
    return short(f"{type(policy).__name__}({short(policy.name, 40)}: {detail})", LONGEST_REPR)


@runtime_checkable
class HasPriorMean(Protocol):
    """A policy whose normalised actions have a mean, e.g. targets near the pose."""

    def prior_mean(self, observation: Observation) -> Tensor | None:
        """Return the mean of the initial noise, normalised; None for 0.

        Args:
            observation: key -> (batch, n_obs_steps, *shape).

        Returns:
            A tensor that broadcasts over chunks (batch, horizon, action).
        """


def prior_mean_of(policy: Policy, observation: Observation) -> Tensor | None:
    """Return the mean of a policy's initial noise; None for 0."""
    return policy.prior_mean(observation) if isinstance(policy, HasPriorMean) else None


def is_stochastic(policy: Policy) -> bool:
    """Return whether a policy must be sampled along an SDE.

    Views and compositions have the attribute `stochastic`.
    """
    return bool(getattr(policy, "stochastic", False))


def is_linear(policy: Policy) -> bool:
    """Return whether a cost can steer a policy's denoised action.

    Views and compositions have the attribute `linear`.
    """
    return bool(getattr(policy, "linear", True))


@runtime_checkable
class Movable(Protocol):
    """A policy that moves its networks itself.

    Of other policies the modules and tensors in their attributes are moved (`gpc.inference.device`).
    """

    def to(self, device: torch.device, dtype: Dtype | None) -> Policy:
        """Return the policy with its networks on a device; this one stays as it is.

        Args:
            device: The device.
            dtype: Of products of matrices, to which autocast converts them; weights in it take half the memory.
        """


@runtime_checkable
class HasSimulator(Protocol):
    """A policy whose checkpoint may describe its simulator."""

    @property
    def simulator(self) -> EnvSpec | None:
        """Environment of the training; None if gpc cannot build it."""


@runtime_checkable
class HasActionSteps(Protocol):
    """A policy whose checkpoint may hold how much of a chunk is executed."""

    @property
    def n_action_steps(self) -> int | None:
        """Actions executed before the next observation; None if not declared."""


@runtime_checkable
class HasFolder(Protocol):
    """A policy that was read from disk."""

    @property
    def folder(self) -> Path | None:
        """Folder that holds the files; None if it is not known."""
