"""LeRobot's benchmarks, as `lerobot-eval` builds them: LIBERO, Meta-World, RoboCasa, RoboTwin, VLABench, RoboMME, ..."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gpc.errors import InputError, one_line, suggest
from gpc.policy.observation import TASK, TASK_BYTES
from gpc.rollout.gl import choose_gl, undecided
from gpc.types import Array, Frame

try:
    from lerobot.envs.configs import EnvConfig, HubEnvConfig
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.envs.utils import preprocess_observation
except ImportError as error:
    raise InputError(f"env=lerobot needs LeRobot ({error}); run gpc doctor") from error

ROBOT = "gym_manipulator"


class LeRobotTask(gymnasium.ObservationWrapper[Frame, Any, Any]):
    """One task of a benchmark, with the observations of LeRobot's policies.

    These are "observation.images.NAME" or "observation.image" (height, width, 3) uint8, "observation.state",
    "observation.environment_state" float32, and the instruction, "task".

    Args:
        env: the benchmark's environment.
        processor: LeRobot's processor of its observations.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], processor: Any) -> None:
        super().__init__(env)
        self._processor = processor
        names = (name for name in ("task_description", "task") if env.has_wrapper_attr(name))
        self._instruction = str(next((env.get_wrapper_attr(name) for name in names), "") or "")
        if "mujoco" in sys.modules:
            choose_gl()
        frame, _ = env.reset(seed=0)
        texts = {TASK: spaces.Text(TASK_BYTES)} if self._instruction else {}
        boxes = {key: _box(value) for key, value in self.observation(frame).items() if key != TASK}
        space: Any = spaces.Dict({**boxes, **texts})
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Begin an episode; the seed chooses among initial states that are recorded."""
        if seed is not None and self.env.has_wrapper_attr("init_state_id"):
            self.env.set_wrapper_attr("init_state_id", seed)
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Frame:
        """Return an observation of the benchmark as policies read it."""
        batch = preprocess_observation(_batched(observation))
        frame = {key: _array(value) for key, value in self._processor(batch).items() if hasattr(value, "numpy")}
        return {**frame, TASK: self._instruction} if self._instruction else frame  # type: ignore[dict-item]


def lerobot_task(
    benchmark: str, task: str = "", task_id: int = 0, settings: Mapping[str, Any] | None = None
) -> LeRobotTask:
    """Build one task of a benchmark.

    Args:
        benchmark: as `lerobot-eval --env.type`: "libero", "metaworld", ...
        task: as `--env.task`: a suite or a task; "": the benchmark's own default.
        task_id: number of the task in its suite.
        settings: the benchmark's further `--env.*`.

    Raises:
        InputError: If there is no such benchmark, task or setting, or a package is missing.
    """
    known = EnvConfig.get_known_choices()
    kind = known.get(benchmark)
    if kind is None:
        raise InputError(f"LeRobot has no benchmark {benchmark!r}{suggest(benchmark, sorted(known))}")
    if issubclass(kind, HubEnvConfig) or benchmark == ROBOT:
        why = "is a robot" if benchmark == ROBOT else "is code on the hub, which gpc does not run"
        raise InputError(f"env.options.benchmark={benchmark} {why}; choose another")
    try:
        only = {"task_ids": [task_id]} if "task_ids" in kind.__dataclass_fields__ else {}  # the others are not built
        config = kind(**({"task": task} if task else {}), **only | dict(settings or {}))
        with undecided(), redirect_stdout(io.StringIO()):
            suites = make_env(config, n_envs=1)
    except ImportError as error:
        raise InputError(
            f"{benchmark} needs a package that is missing ({one_line(error)}); LeRobot has the extra {benchmark!r}"
        ) from None
    except (TypeError, ValueError, KeyError, AssertionError, gymnasium.error.Error) as error:
        raise InputError(f"LeRobot cannot make {benchmark} {task}: {one_line(error)}") from None
    tasks = {number: vector for suite in suites.values() for number, vector in suite.items()}
    if task_id not in tasks:
        raise InputError(
            f"env.options.task_id={task_id}: {benchmark} {task} has the tasks {min(tasks)} to {max(tasks)}"
        )
    processor, _ = make_env_pre_post_processors(config, None)
    return LeRobotTask(tasks[task_id].envs[0], processor)


def _batched(observation: Any) -> Any:
    """Return an observation with a batch of one."""
    if isinstance(observation, Mapping):
        return {key: _batched(value) for key, value in observation.items()}
    return np.asarray(observation)[None]


def _array(value: Any) -> Array:
    """Return the row of a batch of one."""
    row: Array = value[0].numpy()  # an image is (channels, height, width) from 0 to 1
    return np.rint(255 * row).astype(np.uint8).transpose(1, 2, 0) if row.ndim == 3 else row


def _box(value: Array) -> spaces.Box:
    image = value.dtype == np.uint8
    return spaces.Box(0 if image else -np.inf, 255 if image else np.inf, value.shape, value.dtype.type)
