"""The simulator contract: `gymnasium.Env`, with moving and looking kept apart.

A policy that executes a chunk of actions looks at the last few observations only. Rendering the others
costs more than the physics, so `advance` moves the world and `observe` looks at it; `step` is both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np

from gpc.policy.env_spec import EnvSpec
from gpc.types import Array, Frame

TASK, TASK_BYTES = "task", 256
"""The observation key of an instruction in words, and its shape: UTF-8 in uint8, filled up with zeros."""


def write_text(text: str) -> Array:
    """An instruction as an observation, (TASK_BYTES,) uint8; what is too long is cut."""
    return np.frombuffer(text.encode()[:TASK_BYTES].ljust(TASK_BYTES, b"\0"), np.uint8).copy()


def read_text(task: Array) -> str:
    """The instruction of an observation (TASK_BYTES,)."""
    return bytes(task).partition(b"\0")[0].decode(errors="replace")


@runtime_checkable
class Pointing(Protocol):
    """An environment whose actions are places in its picture."""

    def pixels(self, actions: Array) -> Array:
        """Actions (..., action_dim) as places (..., 2) in what `render` returns: from the left, from the top."""


class Environment(gymnasium.Env[Frame, Array]):
    """A simulator with a dictionary observation; the base class of everything in `gpc.envs`.

    `info["is_success"]` says whether the task is solved at this step. The score of an episode is its
    largest reward, its success whether `is_success` was ever true.
    """

    @abstractmethod
    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        """Move one control step; `action` (action_dim,) in the environment's units.

        Returns reward, terminated, truncated and info, as `gymnasium.Env.step` does without the observation.
        """

    @abstractmethod
    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Look at the world as it is now: these keys of `observation_space`, all by default."""

    def step(self, action: Array) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Move one control step and look (gymnasium's own signature)."""
        reward, terminated, truncated, info = self.advance(np.asarray(action))
        return self.observe(), reward, terminated, truncated, info


def make_env(spec: EnvSpec) -> Environment:
    """Build the environment of a spec."""
    module, _, name = spec.target.partition(":")
    keys = {} if spec.observation_keys is None else {"observation_keys": spec.observation_keys}
    env: Environment = getattr(import_module(module), name)(max_steps=spec.max_steps, **keys, **(spec.options or {}))
    return env
