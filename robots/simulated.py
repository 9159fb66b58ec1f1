"""A robot without hardware: any environment of gpc behind LeRobot's `Robot`, optionally with the faults of a real robot.

It waits for its driver: the world moves when an action is sent.
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

from gpc.commands.simulators import env_named
from gpc.errors import InputError
from gpc.policy.observation import TASK
from gpc.rollout.env import Environment, make_env
from gpc.types import Array, Frame


@RobotConfig.register_subclass("gpc_simulated")
@dataclass(kw_only=True)
class SimulatedRobotConfig(RobotConfig):
    """Settings of `SimulatedRobot`.

    Attributes:
        env: an environment of `gpc search -h`.
        overrides: keys of the environment, as on the command line.
        seed: seed of the episode.
        pictures: cameras that the robot has, beside the environment's numbers.
        delay: fault: age of observations, in steps.
        dropped: fault: probability that an observation is the last one again.
        noise: fault: standard deviation of noise on numbers.
        jitter: fault: seconds that a read or a write takes longer, at most.
    """

    env: str = "pusht"
    overrides: list[str] = field(default_factory=list)
    seed: int = 0
    pictures: list[str] = field(default_factory=list)
    delay: int = 0
    dropped: float = 0.0
    noise: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.delay >= 0 and 0 <= self.dropped < 1 and 0 <= self.noise < np.inf and 0 <= self.jitter < np.inf):
            raise InputError(
                f"robot: dropped={self.dropped:g} must be below 1, and delay={self.delay}, noise={self.noise:g}, "
                f"jitter={self.jitter:g} not negative"
            )


class SimulatedRobot(Robot):
    """An environment as a robot.

    Its features are `key.0`, `key.1`, ... of each key of numbers, cameras by name, and `action.0`, ... to send.

    Attributes:
        success: whether the episode was a success so far.
        score: largest reward so far.
        done: whether the episode has ended, so that nothing moves until `reset`.
        steps: steps of the environment.
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
        self._sendings_per_step = 1
        self._spec = spec
        self._random = np.random.default_rng(config.seed)
        self.success, self.score, self.done, self.steps, self._sendings = False, 0.0, False, 0, 0

    def set_rate(self, rate: float, fps: float) -> None:
        """Let the environment take a step at every (rate / fps)-th action.

        Raises:
            InputError: If rate is no multiple of fps.
        """
        sendings = rate / fps
        if not (sendings >= 1 and abs(sendings - round(sendings)) <= 1e-9):
            raise InputError(f"{self.name}: {rate:g} actions in a second are no multiple of fps={fps:g}")
        self._sendings_per_step = round(sendings)

    @property
    def observation_features(self) -> dict[str, Any]:
        """`key.0`, ... of each key of numbers, and the shape of each camera's pictures."""
        features: dict[str, Any] = {}
        for key, box in self._spaces.items():
            numbers = {f"{key}.{i}": float for i in range(int(np.prod(box.shape)))}
            features |= {key: tuple(box.shape)} if _camera(box) else numbers
        return features

    @property
    def action_features(self) -> dict[str, Any]:
        """`action.0`, `action.1`, ..."""
        return {f"action.{i}": float for i in range(len(self._low))}

    @property
    def is_connected(self) -> bool:
        """Whether the world is built."""
        return self._env is not None

    @property
    def is_calibrated(self) -> bool:
        """True: there is nothing to calibrate."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Build the world and begin the episode of the configuration's seed."""
        if self._env is not None:
            raise DeviceAlreadyConnectedError(f"{self} is connected")
        self._env = make_env(self._spec, tuple(self._spaces))
        self.reset(self.config.seed)

    def reset(self, seed: int) -> None:
        """Begin the episode of a seed."""
        frame, _ = self._world.reset(seed=seed)
        self.success, self.score, self.done, self.steps, self._sendings = False, 0.0, False, 0, 0
        self._random = np.random.default_rng(seed)
        self._frames: deque[Frame] = deque([frame], maxlen=self.config.delay + 1)
        self._frame = frame

    def get_observation(self) -> dict[str, Any]:
        """Return the observation of now, or of `delay` steps ago."""
        self._wait()
        _ = self._world
        if self._random.random() >= self.config.dropped:
            self._frame = self._frames[0]
        reading: dict[str, Any] = {}
        for key, value in self._frame.items():
            reading |= {key: value.copy()} if _camera(self._spaces[key]) else self._numbers(key, value)
        return reading

    def send_action(self, action: Mapping[str, float]) -> dict[str, float]:
        """Take an action, clipped to the environment's bounds; return it as executed."""
        self._wait()
        world, wanted = self._world, np.array([float(action[name]) for name in self.action_features])
        if not np.isfinite(wanted).all():
            raise ValueError(f"an action must be finite, not {dict(action)}")
        executed = np.clip(wanted, self._low, self._high)
        if self._sendings % self._sendings_per_step == 0 and not self.done:
            self._move(world, executed)
        self._sendings += 1
        return dict(zip(self.action_features, executed.tolist(), strict=True))

    def disconnect(self) -> None:
        """Close the world."""
        if self._env is None:
            raise DeviceNotConnectedError(f"{self} is not connected")
        env, self._env = self._env, None
        env.close()

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    @property
    def _world(self) -> Environment:
        if self._env is None:
            raise DeviceNotConnectedError(f"{self} is not connected; call connect()")
        return self._env

    def _move(self, world: Environment, action: Array) -> None:
        reward, terminated, truncated, info = world.advance(action)
        self.success, self.score = self.success or bool(info["is_success"]), max(self.score, float(reward))
        self.done, self.steps = terminated or truncated, self.steps + 1
        self._frames.append(world.observe())

    def _numbers(self, key: str, value: Array) -> dict[str, float]:
        flat = value.astype(np.float64).ravel()
        noisy = flat + self.config.noise * self._random.standard_normal(len(flat)) if self.config.noise else flat
        return {f"{key}.{i}": number for i, number in enumerate(noisy.tolist())}

    def _wait(self) -> None:
        if self.config.jitter:
            time.sleep(self._random.uniform(0, self.config.jitter))

    def _sensed(self, env: Environment) -> dict[str, spaces.Box]:
        """Return the numbers of an environment, and the configured cameras."""
        offered = cast(dict[str, spaces.Box], dict(cast(spaces.Dict, env.observation_space)))
        cameras = [key for key, box in offered.items() if _camera(box)]
        unknown = [key for key in self.config.pictures if key not in cameras]
        if unknown:
            raise InputError(f"{self.config.env} has no camera {unknown[0]!r}; it has {', '.join(cameras) or 'none'}")
        return {
            key: box
            for key, box in offered.items()
            if key in self.config.pictures or (len(box.shape) == 1 and key != TASK)
        }


def _camera(box: spaces.Box) -> bool:
    return len(box.shape) == 3
