"""Messages between an engine and a simulator elsewhere, and the description of its environment.

| message | answer |
|---|---|
| `{MAKE: keys or None, "max_steps": number or None}`, the first one | `ServedEnv` |
| `{RESET: seed}` | `{FRAMES: [observation], SUCCESS}` |
| `{EXECUTE: actions, WANTED: keys of the newest observation, of the one before it, ...}` | `Executed` |
| `{OBSERVE: keys}` | `{FRAMES: [observation]}` |
| `{RENDER: True}` | `{RENDER: picture}` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any

import numpy as np
from gymnasium import spaces
from msgspec import Meta, Struct

from gpc.card import OBSERVATION
from gpc.errors import InputError
from gpc.policy.observation import NAME
from gpc.rollout.env import Environment, Executed
from gpc.serve.codec import DTYPES
from gpc.types import Array, Frame

MAKE, EXECUTE, WANTED, OBSERVE, RENDER = "gpc.make", "gpc.execute", "wanted", "gpc.observe", "gpc.render"
FRAMES, REWARDS, SUCCESS, TERMINATED, TRUNCATED = "frames", "rewards", "success", "terminated", "truncated"
NAMES = 256  # keys of an environment

Name = Annotated[str, Meta(min_length=1, max_length=NAME)]
Size = Annotated[int, Meta(ge=0, le=OBSERVATION)]
Steps = Annotated[int, Meta(ge=1, le=10**6)]


class Values(Struct, frozen=True):
    """The arrays of one observation key."""

    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"the dtype {self.dtype[:20]!r} is none that a message holds")
        if prod(self.shape) > OBSERVATION:
            raise ValueError(f"an observation holds at most {OBSERVATION} numbers")

    @property
    def space(self) -> spaces.Box:
        """The space of all such arrays."""
        dtype = DTYPES[self.dtype]
        low, high = (-np.inf, np.inf) if dtype.kind == "f" else (0, 1) if dtype.kind == "b" else _bounds(dtype)
        return spaces.Box(low, high, self.shape, dtype.type)


class ServedEnv(Struct):
    """An environment, as its server describes it."""

    observations: Annotated[dict[Name, Values], Meta(min_length=1, max_length=NAMES)]
    low: Annotated[list[float], Meta(min_length=1, max_length=1024)]
    high: Annotated[list[float], Meta(min_length=1, max_length=1024)]
    action_dtype: str
    max_steps: Steps | None = None

    def __post_init__(self) -> None:
        if len(self.low) != len(self.high) or not all(
            low <= high for low, high in zip(self.low, self.high, strict=True)
        ):
            raise ValueError("low and high bound the same action")
        if self.action_dtype not in DTYPES or DTYPES[self.action_dtype].kind != "f":
            raise ValueError("an action is of floats")

    @property
    def action_space(self) -> spaces.Box:
        """The space of actions."""
        dtype: Any = DTYPES[self.action_dtype].type
        return spaces.Box(np.array(self.low, dtype), np.array(self.high, dtype), dtype=dtype)


def described(env: Environment) -> dict[str, Any]:
    """Return the fields of `ServedEnv` for an environment."""
    action: Any = env.action_space
    observations: Any = env.observation_space
    return {
        "observations": {key: {"shape": box.shape, "dtype": box.dtype.str} for key, box in observations.items()},
        "low": action.low.tolist(),
        "high": action.high.tolist(),
        "action_dtype": action.dtype.str,
        "max_steps": env.max_steps,
    }


def sent(executed: Executed) -> dict[str, Any]:
    """Return the message of what actions led to."""
    return executed._asdict() | {REWARDS: np.array(executed.rewards, np.float64)}


def read_executed(
    reply: Mapping[str, Any], steps: int, wanted: Sequence[Sequence[str]], observations: Mapping[str, Values]
) -> Executed:
    """Return what at most `steps` actions led to.

    Raises:
        InputError: If the reply is something else.
    """
    rewards: Any = reply.get(REWARDS)
    right = isinstance(rewards, np.ndarray) and rewards.dtype == np.float64 and rewards.ndim == 1
    if not right or not 1 <= len(rewards) <= steps or not np.isfinite(rewards).all():
        raise InputError(f"rewards are no 1 to {steps} finite numbers")
    terminated, truncated = read_truth(reply, TERMINATED), read_truth(reply, TRUNCATED)
    if len(rewards) < steps and not (terminated or truncated):
        raise InputError(f"{len(rewards)} of {steps} actions were executed, without an end of the episode")
    keys = [] if terminated or truncated else list(wanted[:steps])[::-1]
    frames = read_frames(reply, keys, observations)
    return Executed(rewards.tolist(), read_truth(reply, SUCCESS), bool(terminated), bool(truncated), frames)


def read_frames(
    reply: Mapping[str, Any], wanted: Sequence[Sequence[str]], observations: Mapping[str, Values]
) -> list[Frame]:
    """Return the observations of a reply, each with the keys that were wanted.

    Raises:
        InputError: If a key is missing, or has another shape than was described.
    """
    frames: Any = reply.get(FRAMES)
    if not isinstance(frames, list) or len(frames) != len(wanted) or not all(isinstance(each, dict) for each in frames):
        raise InputError(f"answer without {len(wanted)} observations")
    return [
        {key: _read(frame, key, observations[key]) for key in keys} for frame, keys in zip(frames, wanted, strict=True)
    ]


def read_truth(reply: Mapping[str, Any], key: str) -> bool | None:
    """Return true, false, or None if nothing is reported.

    Raises:
        InputError: If it is something else.
    """
    value = reply.get(key)
    if value is not None and not isinstance(value, bool | np.bool_):
        raise InputError(f"{key} is neither true, false nor null")
    return None if value is None else bool(value)


def _read(frame: Mapping[str, Any], key: str, values: Values) -> Array:
    array = frame.get(key)
    if not isinstance(array, np.ndarray) or array.shape != values.shape:
        raise InputError(f"observation {key!r} is no array of shape {values.shape}")
    return array.copy()  # a message's is read-only; its dtype is the simulator's, which not all describe well


def _bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
