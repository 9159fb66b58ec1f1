"""What a policy is: specs of its actions and observations, its noise levels, and `condition`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gpc.denoise import Clamp, Denoiser, Shifted
from gpc.errors import InputError, one_line
from gpc.load import suggest
from gpc.noise import NoiseLevels
from gpc.worker import EnvSpec

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


def check_names(key: str, given: Iterable[str], policies: Sequence[Policy]) -> None:
    """Raises InputError where a key of the configuration that goes by policy names none of these."""
    names = [policy.name for policy in policies]
    for name in set(given) - set(names):
        raise InputError(f"{key} goes by policy; there is no {name!r}{suggest(name, names)}")


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


def simulator_of(policies: Sequence[Policy], asked: EnvSpec) -> EnvSpec:
    """The one simulator that all the policies were trained for; what is not 0 in `asked` replaces the checkpoints' numbers.

    Of several, the shortest `n_action_steps` and the longest `max_steps`; an option that one alone names is taken from it.
    Raises InputError where a policy does not say, or two were trained for different ones.
    """
    specs: list[EnvSpec] = []
    options: dict[str, Any] = {}
    for policy in policies:
        spec = policy.simulator if isinstance(policy, Simulated) else None
        if spec is None:
            raise InputError(f"{policy.name} does not say which simulator it was trained for; name one, as in env=lift")
        own = spec.options or {}
        if specs and (spec.target != specs[0].target or any(options.get(key, own[key]) != own[key] for key in own)):
            one, other = _told_apart(specs[0], spec)
            raise InputError(
                f"{policies[0].name} was trained for {one}, {policy.name} for {other}; name one, as in env=lift"
            )
        specs.append(spec)
        options |= own
    n_action_steps = asked.n_action_steps or min(spec.n_action_steps for spec in specs)
    max_steps = asked.max_steps or max(spec.max_steps for spec in specs)
    return replace(specs[0], n_action_steps=n_action_steps, max_steps=max_steps, options=options)


def _told_apart(one: EnvSpec, other: EnvSpec) -> tuple[str, str]:
    """Both by name and, where that is the same, the first option that differs."""
    if one.name != other.name:
        return one.name, other.name
    first, second = _leaves(one.options, "options"), _leaves(other.options, "options")
    key = next((key for key in first | second if first.get(key) != second.get(key)), "target")
    return f"{one.name} with {key}={first.get(key)}", f"{other.name} with {key}={second.get(key)}"


def _leaves(node: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {path: node}
    return {leaf: value for key, item in node.items() for leaf, value in _leaves(item, f"{path}.{key}").items()}


@dataclass(frozen=True)
class Adapted:
    """A policy that is seen in another way: `rename`, `named`, `absolute` and `gpc.steer` make it."""

    policy: Policy
    actions: ActionSpec
    observations: ObservationSpec
    change: str  # what the fingerprint says of it
    bind: Callable[[Observation], Denoiser]
    around: Callable[[Observation], Tensor | None] | None = None  # where its actions lie, if not where the policy's do
    called: str | None = None

    @property
    def name(self) -> str:
        """The policy's, unless it is `called` otherwise."""
        return self.called or self.policy.name

    @property
    def levels(self) -> NoiseLevels:
        """The policy's."""
        return self.policy.levels

    @property
    def fingerprint(self) -> str:
        """The policy's, with the change."""
        return f"{self.policy.fingerprint} {self.change}"

    @property
    def simulator(self) -> EnvSpec | None:
        """The policy's; see `Simulated`."""
        return self.policy.simulator if isinstance(self.policy, Simulated) else None

    def condition(self, observation: Observation) -> Denoiser:
        """See `Policy`."""
        return self.bind(observation)

    def centre(self, observation: Observation) -> Tensor | None:
        """See `Centred`."""
        return self.around(observation) if self.around else centre_of(self.policy, observation)


def rename(policy: Policy, keys: Mapping[str, str]) -> Policy:
    """The policy under an environment's keys, `keys[own] = theirs`; itself where it reads none of the renamed ones.

    Raises InputError where two of its keys would become one.
    """
    own = policy.observations.shapes
    used = {key: keys[key] for key in sorted(own) if key in keys}
    if not used:
        return policy
    theirs = [keys.get(key, key) for key in own]
    twice = sorted({key for key in theirs if theirs.count(key) > 1})
    if twice:
        raise InputError(f"rename_map gives {policy.name} the key {twice[0]!r} for more than one of {', '.join(own)}")

    def back(observation: Observation) -> Observation:
        return {key: observation[keys.get(key, key)] for key in own}

    def bind(observation: Observation) -> Denoiser:
        return policy.condition(back(observation))

    def around(observation: Observation) -> Tensor | None:
        return centre_of(policy, back(observation))

    seen = replace(policy.observations, shapes=dict(zip(theirs, own.values(), strict=True)))
    return Adapted(policy, policy.actions, seen, json.dumps(used), bind, around)


def named(policy: Policy, names: Sequence[str]) -> Policy:
    """The policy with names for its action dimensions, by which they are composed with those of others.

    Raises InputError where they are no list of names, not as many as dimensions, or two are the same.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"action_names gives {policy.name} {names}, which is no list of names, as in [x,y,z]")
    if len(names) != policy.actions.dim:
        raise InputError(
            f"action_names gives {policy.name} {len(names)} names, it acts in {policy.actions.dim} dimensions"
        )
    actions = replace(policy.actions, names=tuple(names))
    return Adapted(policy, actions, policy.observations, json.dumps(actions.names), policy.condition)


def absolute(policy: Policy, key: str) -> Policy:
    """A policy of moves from where the robot is when the chunk is planned, as one of absolute targets.

    `key`: the observation that says where it is, one number for each action dimension in the actions' units; its newest
    counts. With b = observation / scale the denoised target is D(x - b) + b, and chunks are sampled around b. Raises
    InputError where the policy predicts targets already, or reads the key in another shape.
    """
    own, reads = policy.actions, policy.observations
    if not isinstance(key, str):
        raise InputError(f"origin gives {policy.name} {key}, which is no observation's name")
    if own.relative is False:
        raise InputError(f"origin: {policy.name} predicts absolute targets already")
    if reads.shapes.get(key, (own.dim,)) != (own.dim,):
        raise InputError(
            f"origin: {policy.name} reads {key!r} as {reads.shapes[key]}, its moves have {own.dim} dimensions"
        )

    def around(observation: Observation) -> Tensor:
        here = observation[key][:, -1:].double().cpu()
        return here / here.new_tensor(own.scale)

    def bind(observation: Observation) -> Denoiser:
        denoiser = policy.condition({name: observation[name] for name in reads.shapes})
        return Shifted(Clamp(denoiser, own.bound) if own.bound is not None else denoiser, around(observation))

    seen = replace(reads, shapes={**reads.shapes, key: (own.dim,)})
    return Adapted(policy, replace(own, relative=False, bound=None), seen, f"from {key}", bind, around)


def observation_tensors(
    observation: Mapping[str, npt.NDArray[Any]], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Arrays as tensors on a device: numbers as float32, images as they are (uint8)."""
    return {
        key: torch.from_numpy(value if value.dtype == np.uint8 else value.astype(np.float32)).to(device)
        for key, value in observation.items()
    }
