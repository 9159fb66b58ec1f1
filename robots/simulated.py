"""A robot that needs no hardware: any environment of gpc behind LeRobot's `Robot`, with the faults of a real one on request.

It waits for its driver: the world moves when an action is sent. What `gpc deploy` runs on it is the code that runs in a lab.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from lerobot.robots import Robot, RobotConfig
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from gpc.commands.setup import env_named
from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.env import TASK, Environment, make_env
from gpc.types import Array, Frame


@RobotConfig.register_subclass("gpc_simulated")
@dataclass(kw_only=True)
class SimulatedRobotConfig(RobotConfig):
    """`env` is one of `gpc search -h`, with `overrides` as on its command line; its episode is that of `seed`.

    The robot senses the environment's numbers and these `pictures`. Its world takes a step at every `sends_per_step`-th action,
    with that action. Faults: `delay` makes observations so many steps old; each is, with probability `dropped`, the last one
    again; `noise` is added to its numbers (standard deviation); a read or write takes up to `jitter` seconds more.
    """

    env: str = "pusht"
    overrides: list[str] = field(default_factory=list)
    seed: int = 0
    pictures: list[str] = field(default_factory=list)
    sends_per_step: int = 1
    delay: int = 0
    dropped: float = 0.0
    noise: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = self.sends_per_step >= 1 and self.delay >= 0
        if not (counts and 0 <= self.dropped < 1 and 0 <= self.noise < np.inf and 0 <= self.jitter < np.inf):
            raise InputError(
                f"robot: sends_per_step={self.sends_per_step} must be 1 or more, dropped={self.dropped:g} below 1, and "
                f"delay={self.delay}, noise={self.noise:g}, jitter={self.jitter:g} not negative"
            )


class SimulatedRobot(Robot):
    """An environment as a robot: `key.0`, `key.1`, ... of each key of numbers, cameras by name; `action.0`, ... to send.

    `success` and `score` are the episode's, `over` says that it has ended: nothing moves any more until `reset`.
    """

    config_class = SimulatedRobotConfig
    name = "gpc_simulated"
    waits_for_driver = True  # its world moves only when an action is sent: virtual time is safe

    def __init__(self, config: SimulatedRobotConfig) -> None:
        self._env: Environment | None = None
        super().__init__(config)
        self.config = config
        spec = env_named(config.env, config.overrides)
        env = make_env(spec)
        self._spaces = self._sensed(env)
        bounds = cast(spaces.Box, env.action_space)
        self._low, self._high = bounds.low, bounds.high
        env.close()
        self._spec = EnvSpec(spec.type, spec.n_action_steps, spec.max_steps, tuple(self._spaces), 1, spec.options)
        self._random = np.random.default_rng(config.seed)
        self.success, self.score, self.over, self.steps, self._sends = False, 0.0, False, 0, 0

    @property
    def observation_features(self) -> dict[str, Any]:
        """See the class."""
        found: dict[str, Any] = {}
        for key, box in self._spaces.items():
            numbers = {f"{key}.{i}": float for i in range(int(np.prod(box.shape)))}
            found |= {key: tuple(box.shape)} if _camera(box) else numbers
        return found

    @property
    def action_features(self) -> dict[str, Any]:
        """See the class."""
        return {f"action.{i}": float for i in range(len(self._low))}

    @property
    def is_connected(self) -> bool:
        """Whether there is a world."""
        return self._env is not None

    @property
    def is_calibrated(self) -> bool:
        """There is nothing to calibrate."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Build the world and begin the episode of the configuration's seed."""
        if self._env is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected")
        self._env = make_env(self._spec)
        self.reset(self.config.seed)

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed."""
        frame, _ = self._world.reset(seed=seed)
        self.success, self.score, self.over, self.steps, self._sends = False, 0.0, False, 0, 0
        self._random = np.random.default_rng(seed)
        self._frames: deque[Frame] = deque([frame], maxlen=self.config.delay + 1)
        self._shown = frame

    def get_observation(self) -> dict[str, Any]:
        """What is sensed now, or `delay` steps ago."""
        self._wait()
        _ = self._world
        if self._random.random() >= self.config.dropped:
            self._shown = self._frames[0]
        found: dict[str, Any] = {}
        for key, value in self._shown.items():
            found |= {key: value.copy()} if _camera(self._spaces[key]) else self._numbers(key, value)
        return found

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Move, within the environment's bounds; returns what was done."""
        self._wait()
        world, wanted = self._world, np.array([float(action[name]) for name in self.action_features])
        if not np.isfinite(wanted).all():
            raise ValueError(f"an action must be finite, not {dict(action)}")
        done = np.clip(wanted, self._low, self._high)
        if self._sends % self.config.sends_per_step == 0 and not self.over:
            self._move(world, done)
        self._sends += 1
        return dict(zip(self.action_features, done.tolist(), strict=True))

    def disconnect(self) -> None:
        """Close the world."""
        if self._env is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        env, self._env = self._env, None
        env.close()

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    @property
    def _world(self) -> Environment:
        if self._env is None:
            raise DeviceNotConnectedError(f"{self} is not connected; call connect()")
        return self._env

    def _move(self, world: Environment, action: Array) -> None:
        reward, terminated, truncated, info = world.advance(action)
        self.success, self.score = self.success or bool(info["is_success"]), max(self.score, float(reward))
        self.over, self.steps = terminated or truncated, self.steps + 1
        self._frames.append(world.observe())

    def _numbers(self, key: str, value: Array) -> dict[str, float]:
        flat = value.astype(np.float64).ravel()
        noisy = flat + self.config.noise * self._random.standard_normal(len(flat)) if self.config.noise else flat
        return {f"{key}.{i}": number for i, number in enumerate(noisy.tolist())}

    def _wait(self) -> None:
        if self.config.jitter:
            time.sleep(self._random.uniform(0, self.config.jitter))

    def _sensed(self, env: Environment) -> dict[str, spaces.Box]:
        """The numbers of an environment, and the cameras that are asked for."""
        offered = cast(dict[str, spaces.Box], dict(cast(spaces.Dict, env.observation_space)))
        cameras = [key for key, box in offered.items() if _camera(box)]
        unknown = [key for key in self.config.pictures if key not in cameras]
        if unknown:
            raise InputError(f"{self.config.env} has no camera {unknown[0]!r}; it has {', '.join(cameras) or 'none'}")
        return {
            key: box
            for key, box in offered.items()
            if key in self.config.pictures or (box.dtype != np.uint8 and len(box.shape) == 1 and key != TASK)
        }


def _camera(box: spaces.Box) -> bool:
    return len(box.shape) == 3
