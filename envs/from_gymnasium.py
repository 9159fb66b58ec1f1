"""Any gymnasium environment: registered ones by their id (MuJoCo, Fetch, Adroit, Franka Kitchen), or one's own."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gpc.errors import InputError, RunError, one_line, suggest
from gpc.policy.observation import TASK, TASK_BYTES, write_text
from gpc.registry import import_named
from gpc.rollout.env import Environment, draws
from gpc.rollout.gl import choose_gl, undecided
from gpc.rollout.instances import package_of
from gpc.types import Array, Frame

ROBOTICS = ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze")  # prefixes of their ids
LIMITS = ("_max_episode_steps", "max_episode_steps", "max_steps", "max_path_length")
"""Attributes that hold the longest episode: of gymnasium's TimeLimit and LeRobot's, of MiniGrid's, of Meta-World's."""

NUMBERS = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary

Path = tuple[str | int, ...]
"""Where a value lies in a nested observation."""


class Gymnasium(Environment):
    """A gymnasium environment with arrays and actions of one vector.

    Observations of a dictionary or a tuple have their keys or places, nested ones joined by a dot ("desired_goal.kettle",
    "0"). Other observations are "state", or "pixels" for a picture (three dimensions). A text is the instruction, "task";
    of several the one of this name. Discrete numbers are vectors. Actions, rewards and ends are the environment's.

    Success is `info["is_success"]`, else `info["success"]`, else that `info["tasks_to_complete"]` is empty (Franka
    Kitchen). An environment without these entries reports none; compare its scores.

    Args:
        observation_keys: observations to keep; None for all.
        max_steps: steps after which an episode is truncated; None for the registered limit.
        task: id ("FetchPush-v4"), or an environment; "module:id" imports the module that registers it.
        settings: arguments of an environment that has an id.

    Raises:
        InputError: If the id or a key is unknown, or the action is no Box of a single dimension.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's declaration)

    def __init__(
        self,
        observation_keys: Sequence[str] | None = None,
        max_steps: int | None = None,
        task: str | gymnasium.Env[Any, Any] = "FetchReach-v4",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if max_steps is not None and max_steps < 1:
            raise InputError(f"{task}: max_steps={max_steps}, give 1 or more")
        self.render_mode = "rgb_array"
        self._env: Any = _make(task, max_steps, settings or {}) if isinstance(task, str) else task
        self.task = task if isinstance(task, str) else type(task.unwrapped).__name__
        self.max_steps = max_steps or _limit(self._env)
        if isinstance(task, str) and not _takes(self._env.unwrapped.reset, "seed"):
            self._env = self._env.unwrapped  # gymnasium's own wrappers pass a seed
        action: Any = self._env.action_space
        if not isinstance(action, spaces.Box) or len(action.shape) != 1:
            self._env.close()
            raise InputError(
                f"{self.task} takes actions from {action}; gpc composes vectors of continuous actions, a Box of (dim,)"
            )
        self.action_space = action
        leaves = dict(_named(self._env.observation_space))
        known = {key: _box(space) for key, (_, space) in leaves.items()}
        self._paths = {key: path for key, (path, _) in leaves.items()}
        self._keys = tuple(known if observation_keys is None else observation_keys)
        unknown = sorted(set(self._keys) - set(known))
        if unknown or not self._keys:
            self._env.close()
            raise InputError(f"{self.task} observations {unknown or '(none)'}: choose from {', '.join(known)}")
        space: Any = spaces.Dict({key: known[key] for key in self._keys})
        self.observation_space = space
        self._observation: Any = None
        self._steps = 0

    @staticmethod
    def check_task(task: str) -> None:
        """Import the module that registers an id, and check the id.

        Raises:
            InputError: If the module does not import, or registers no such id.
        """
        module, _, name = task.rpartition(":")
        if module:
            import_named(module, "env.options.task")
        elif name not in gymnasium.registry and name.startswith(ROBOTICS):
            gymnasium.register_envs(import_module("gymnasium_robotics"))
        if name not in gymnasium.registry:
            raise InputError(_unknown(module, name))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start the environment's episode of `seed`.

        Raises:
            InputError: If its reset takes no seed.
        """
        super().reset(seed=seed)
        wanted: dict[str, Any] = {"seed": seed} if options is None else {"seed": seed, "options": options}
        if not _takes(self._env.unwrapped.reset, "seed"):
            wanted.pop("seed")
            if not hasattr(self._env.unwrapped, "seed"):  # gymnasium's before 0.26
                raise InputError(
                    f"reset() of {self.task} takes no seed, on which an episode must depend; write it as "
                    "reset(self, *, seed=None, options=None) with super().reset(seed=seed)"
                )
            self._env.unwrapped.seed(seed)
        result = self._env.reset(**wanted)
        new = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        self._observation, info = result if new else (result, {})  # before 0.26 there was no info
        self._steps = 0
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
        result = self._env.step(action)
        if len(result) == 4:  # before gymnasium 0.26: observation, reward, done, info
            *result, info = result
            result = [*result, bool(info.get("TimeLimit.truncated")), info]
        self._observation, reward, terminated, truncated, info = result
        self._steps += 1
        truncated = bool(truncated) or self._steps == self.max_steps
        return float(reward), bool(terminated), truncated, {**info, "is_success": _success(info)}

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Return these observations in new arrays."""
        return {key: self._value(key) for key in (self._keys if keys is None else keys)}

    def _value(self, key: str) -> Array:
        value = self._observation
        try:
            for step in self._paths[key]:
                value = value[step]
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{self.task} observes no {key!r}, which its observation_space has") from None
        if isinstance(value, str):
            return write_text(value)
        return np.atleast_1d(np.array(value))  # a single number has the shape (1,)

    def render(self) -> Array:
        """Return the environment's picture, (height, width, 3) uint8.

        Raises:
            RunError: If it draws none.
        """
        if "mujoco" in sys.modules:
            choose_gl()
        try:
            picture = np.asarray(self._env.render())
        except NotImplementedError:
            picture = np.asarray(None)
        if picture.ndim != 3 or picture.dtype != np.uint8:
            raise RunError(f"{self.task} draws no picture: it needs the render_mode 'rgb_array' of gymnasium")
        return picture

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def _make(task: str, max_steps: int | None, settings: Mapping[str, Any]) -> Any:
    name = task.rpartition(":")[2]
    try:
        with undecided():
            Gymnasium.check_task(task)
            arguments = {**_drawing(name), "disable_env_checker": True, **settings}
            return gymnasium.make(name, max_episode_steps=max_steps, **arguments)
    except (ImportError, OSError, gymnasium.error.Error, TypeError, ValueError) as error:
        raise InputError(f"gymnasium cannot make {task}: {one_line(error)}") from None


def _unknown(module: str, name: str) -> str:
    """Return the error line of an unknown id, with the package that may register it."""
    line = f"gymnasium has no environment {name!r}"
    if module:
        top = module.partition(".")[0]
        added = [key for key, spec in gymnasium.registry.items() if package_of(spec) == top]
        return f"{line} after the import of {module}{suggest(name, added) if added else ', which registers none'}"
    package = name.partition("/")[0]
    for candidate in (package, package.lower().replace("-", "_"), package.lower().replace("-", "")):
        if "/" in name and candidate.isidentifier() and find_spec(candidate):
            return f"{line}; the package that registers it comes first, as in {candidate}:{name}"
    close = suggest(name, list(gymnasium.registry))
    return f"{line}{close if 'did you mean' in close else ''}; of another package, write PACKAGE:{name}"


def _drawing(name: str) -> dict[str, Any]:
    """Return the argument for pictures as arrays, if an environment takes it."""
    entry = gymnasium.registry[name].entry_point
    creator = gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    return {"render_mode": "rgb_array"} if creator and _takes(creator, "render_mode") and draws(creator) else {}


def _takes(function: Any, name: str) -> bool:
    parameters = signature(function).parameters
    return name in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())


def _limit(env: Any) -> int | None:
    """Return the longest episode of an environment, as it is registered."""
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return int(env.spec.max_episode_steps)
    limits = [env.get_wrapper_attr(name) for name in LIMITS if env.has_wrapper_attr(name)]
    return next((int(limit) for limit in limits if isinstance(limit, int | np.integer) and limit > 0), None)


def _named(space: spaces.Space[Any]) -> Iterator[tuple[str, tuple[Path, Any]]]:
    """Yield (key, (path, space)) of the parts of an observation that gpc can offer."""
    leaves = list(_leaves(space, ()))
    texts = [path for path, leaf in leaves if isinstance(leaf, spaces.Text)]
    task = texts[0] if len(texts) == 1 else next((path for path in texts if path[-1:] == (TASK,)), None)
    for path, leaf in leaves:
        if path == task:
            yield TASK, (path, leaf)
        elif isinstance(leaf, NUMBERS):
            alone = "pixels" if len(leaf.shape or ()) == 3 else "state"
            yield ".".join(map(str, path)) or alone, (path, leaf)


def _leaves(space: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        for step, part in parts:
            yield from _leaves(part, (*path, step))
    else:
        yield path, space


def _box(space: Any) -> spaces.Box:
    """Return the space of an observation; numbers lose bounds that few keep."""
    if isinstance(space, spaces.Text):
        return spaces.Box(0, 255, (TASK_BYTES,), np.uint8)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return space
    kind = space.dtype.type
    ends: Any = (-np.inf, np.inf) if issubclass(kind, np.floating) else (np.iinfo(kind).min, np.iinfo(kind).max)
    return spaces.Box(ends[0], ends[1], space.shape or (1,), kind)


def _success(info: Mapping[str, Any]) -> bool | None:
    """Return whether the task is solved; None if the environment does not report it."""
    left = info.get("tasks_to_complete")
    entries = [info.get("is_success"), info.get("success"), None if left is None else not left]
    return next((bool(value) for value in entries if value is not None), None)
