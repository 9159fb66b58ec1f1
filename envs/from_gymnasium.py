"""Any registered gymnasium environment by its id: MuJoCo's, Fetch, Adroit, Franka Kitchen and others."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from gpc.errors import InputError, RunError, one_line, suggest
from gpc.rollout.env import Environment
from gpc.rollout.gl import choose_gl, undecided
from gpc.types import Array, Frame

ROBOTICS = ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze")  # prefixes of their ids


class Gymnasium(Environment):
    """A gymnasium environment with arrays and actions of one vector.

    Observations of a dictionary have their keys, nested ones joined by a dot ("desired_goal.kettle"). Other
    observations are "state", or "pixels" for a picture (height, width, 3) uint8. Actions, rewards and ends are the
    environment's.

    Success is `info["is_success"]`, else `info["success"]`, else that `info["tasks_to_complete"]` is empty (Franka
    Kitchen). An environment without these entries never succeeds; compare its scores.

    Args:
        observation_keys: observations to keep; None for all.
        max_steps: steps after which an episode is truncated.
        task: id ("FetchPush-v4"), or an environment; "module:id" imports the module that registers it.
        settings: arguments of an environment that has an id.

    Raises:
        InputError: If the id or a key is unknown, or the action is no Box of a single dimension.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's declaration)

    def __init__(
        self,
        observation_keys: Sequence[str] | None = None,
        max_steps: int = 300,
        task: str | gymnasium.Env[Any, Any] = "FetchReach-v4",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if max_steps < 1:
            raise InputError(f"{task}: max_steps={max_steps}, give 1 or more")
        self.render_mode = "rgb_array"
        if isinstance(task, str):
            self._env = _make(task, max_steps, settings or {})
        else:
            self._env = TimeLimit(task, max_steps)
            task = type(task.unwrapped).__name__
        self.task = task
        action: Any = self._env.action_space
        if not isinstance(action, spaces.Box) or len(action.shape) != 1:
            self._env.close()
            raise InputError(
                f"{task} takes actions from {action}; gpc composes vectors of continuous actions, a Box of (dim,)"
            )
        self.action_space = action
        known = {
            key: _unbounded(box) for key, box in _leaves(self._env.observation_space) if isinstance(box, spaces.Box)
        }
        self._keys = tuple(known if observation_keys is None else observation_keys)
        unknown = sorted(set(self._keys) - set(known))
        if unknown or not self._keys:
            self._env.close()
            raise InputError(f"{task} observations {unknown or '(none)'}: choose from {', '.join(known)}")
        space: Any = spaces.Dict({key: known[key] for key in self._keys})
        self.observation_space = space
        self._frame: Frame = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start the environment's episode of `seed`."""
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed, options=options)
        self._frame = dict(_leaves(observation))
        return self.observe(), {**info, "is_success": _success(info)}

    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        """Execute one action.

        Raises:
            RunError: If the action is not finite or has another shape.
        """
        action = np.asarray(action, self.action_space.dtype)
        wanted = self.action_space.shape
        if action.shape != wanted or not np.isfinite(action).all():
            raise RunError(
                f"{self.task}: action {action.tolist()} is not {wanted} finite numbers: look at the policy's output"
            )
        observation, reward, terminated, truncated, info = self._env.step(action)
        self._frame = dict(_leaves(observation))
        return float(reward), bool(terminated), bool(truncated), {**info, "is_success": _success(info)}

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Return these observations in new arrays."""
        return {key: np.array(self._frame[key]) for key in (self._keys if keys is None else keys)}

    def render(self) -> Array:
        """Return the environment's picture, (height, width, 3) uint8."""
        if "mujoco" in sys.modules:
            choose_gl()
        return np.asarray(self._env.render())

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _make(task: str, max_steps: int, settings: Mapping[str, Any]) -> Any:
    module, _, name = task.rpartition(":")
    try:
        if module:
            import_module(module)
        elif name not in gymnasium.registry and name.startswith(ROBOTICS):
            gymnasium.register_envs(import_module("gymnasium_robotics"))
        if name not in gymnasium.registry:
            raise InputError(f"gymnasium has no environment {name!r}{suggest(name, list(gymnasium.registry))}")
        arguments = {"render_mode": "rgb_array", "disable_env_checker": True, **settings}
        with undecided():
            return gymnasium.make(name, max_episode_steps=max_steps, **arguments)
    except (ImportError, OSError, gymnasium.error.Error, TypeError, ValueError) as error:
        raise InputError(f"gymnasium cannot make {task}: {one_line(error)}") from None


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (key, space or value) of each entry of an observation or its space."""
    if isinstance(node, Mapping | spaces.Dict):
        for key, item in node.items():
            yield from _leaves(item, f"{path}.{key}" if path else key)
    elif path:
        yield path, node
    else:
        yield ("pixels" if node.dtype == np.uint8 and len(node.shape) == 3 else "state"), node


def _unbounded(box: spaces.Box) -> spaces.Box:
    """Remove the bounds of numbers, which few environments keep."""
    return box if box.dtype == np.uint8 else spaces.Box(-np.inf, np.inf, box.shape, box.dtype.type)


def _success(info: Mapping[str, Any]) -> bool:
    left = info.get("tasks_to_complete")
    return bool(info.get("is_success", info.get("success", left is not None and not left)))
