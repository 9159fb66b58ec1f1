"""The simulator contract: `gymnasium.Env` with separate methods for physics and observation.

A policy that executes a chunk of actions reads the last few observations only, and rendering the others is more
expensive than the physics. `advance` therefore moves the world without an observation and `observe` returns one; `step`
does both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np

from gpc.errors import InputError
from gpc.objects import build, settings_of
from gpc.policy.env_spec import EnvSpec
from gpc.registry import ENVS, load_entry, load_named
from gpc.types import Array, Frame


@runtime_checkable
class Pointing(Protocol):
    """An environment whose actions are places in its picture."""

    def pixels(self, actions: Array) -> Array:
        """Map actions (..., action_dim) to pixels (..., 2) of `render`: x, y."""


class Executed(NamedTuple):
    """What actions led to.

    Attributes:
        rewards: a reward for each executed action.
        success: whether the task was solved in the meantime; None if the environment reports no success.
        terminated: whether the task ended the episode.
        truncated: whether its length did.
        frames: the observations that were wanted, oldest first; empty after the end.
    """

    rewards: list[float]
    success: bool | None
    terminated: bool
    truncated: bool
    frames: list[Frame]


def either(one: bool | None, other: bool | None) -> bool | None:
    """Return whether one of two successes is true; None if neither is reported."""
    return one if other is None else bool(one or other)


class Environment(gymnasium.Env[Frame, Array]):
    """A simulator with a dictionary observation.

    `info["is_success"]` is true if the task is solved at this step; it is None if the environment reports no success.
    The score of an episode is its largest reward; an episode is a success if `is_success` was true at any step.

    Attributes:
        max_steps: the longest episode, in control steps; None if the environment has no limit.
    """

    max_steps: int | None = None

    @abstractmethod
    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        """Move one control step without an observation.

        Args:
            action: (action_dim,) in the environment's units.

        Returns:
            Reward, terminated, truncated and info, as from `gymnasium.Env.step`.
        """

    @abstractmethod
    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Return the present observation: these keys, by default all."""

    def step(self, action: Array) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Move one control step and observe, with gymnasium's signature."""
        reward, terminated, truncated, info = self.advance(np.asarray(action))
        return self.observe(), reward, terminated, truncated, info

    def execute(self, actions: Array, wanted: Sequence[Collection[str]] = ()) -> Executed:
        """Move a control step for each action, until the episode ends.

        Args:
            actions: (steps, action_dim) in the environment's units.
            wanted: keys of the newest observation, of the one before it, and so on.
        """
        rewards: list[float] = []
        success, frames = None, []
        for left, action in zip(range(len(actions))[::-1], actions, strict=True):
            reward, terminated, truncated, info = self.advance(action)
            rewards.append(float(reward))
            success = either(success, info["is_success"])
            if terminated or truncated:
                return Executed(rewards, success, bool(terminated), bool(truncated), [])
            if left < len(wanted):
                frames.append(self.observe(wanted[left]))
        return Executed(rewards, success, False, False, frames)


@dataclass(frozen=True)
class LaneSpec:
    """An environment in the engine, and what the policies read of it.

    Attributes:
        env: the environment.
        observation_keys: keys that the policies read; None for all.
        n_obs_steps: length of the observation history.
        history: number of the last observations that are read, by key; at most `n_obs_steps`, the default.
        images: shape of each key that the policies read as an image, which is converted (`gpc.policy.observation.conform`).
    """

    env: EnvSpec
    observation_keys: tuple[str, ...] | None = None
    n_obs_steps: int = 1
    history: Mapping[str, int] | None = None
    images: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def n_action_steps(self) -> int:
        """Actions of a chunk that are executed before the policy observes again."""
        assert self.env.n_action_steps is not None, "null stands for the checkpoints' number"
        return self.env.n_action_steps


def make_env(spec: EnvSpec, observation_keys: tuple[str, ...] | None = None) -> Environment:
    """Build the environment of a spec; a `gymnasium.Env` is adapted.

    Raises:
        InputError: If its type is unknown or needs a package that is missing, an option does not fit, or it is no
            `gymnasium.Env`.
    """
    options = spec.options or {}
    for key in ("observation_keys", "max_steps"):
        if key in options:
            raise InputError(f"env.options.{key} is no option: env.max_steps sets the length, policies choose the keys")
    factory = env_type(spec.type)
    length = {} if spec.max_steps is None else {"max_steps": spec.max_steps}
    common = length | ({} if observation_keys is None else {"observation_keys": observation_keys})
    offered = common | ({"render_mode": "rgb_array"} if draws(factory) and "render_mode" not in options else {})
    settings = settings_of(factory)
    env = build(factory, options, "env.options", **{key: offered[key] for key in offered.keys() & settings.keys()})
    if isinstance(env, Environment):
        return env
    if not isinstance(env, gymnasium.Env):
        kind = f"{type(env).__module__}.{type(env).__qualname__}"
        raise InputError(
            f"env={spec.name} makes a {kind}, no gymnasium.Env; derive it from gymnasium.Env, with gymnasium's spaces"
        )
    adapted: Environment = load_entry(ENVS, "env", "gymnasium")(task=env, **common)
    return adapted


def env_type(kind: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return the class or function of a spec's type."""
    if not isinstance(kind, str):
        return kind
    factory: Callable[..., Any] = load_named(kind, "env") if ":" in kind else load_entry(ENVS, "env", kind)
    return factory


def draws(factory: Callable[..., Any]) -> bool:
    """Return whether a class or function may make pictures as arrays."""
    metadata = getattr(factory, "metadata", None)
    modes = metadata.get("render_modes") if isinstance(metadata, Mapping) else None
    return not modes or "rgb_array" in modes
