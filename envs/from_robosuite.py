"""robosuite's tasks (1.5.1) under robomimic's names: Lift, PickPlaceCan, NutAssemblySquare, ToolHang, TwoArmTransport.

Physics, initial states, rewards and tests of success are robosuite's. Names, units and orientation of the observations
are those that robomimic 0.5.0 stores and its policies read. Papers: Zhu et al. 2020, robosuite, arXiv:2009.12293;
Mandlekar et al. 2021, What Matters in Learning from Offline Human Demonstrations, arXiv:2108.03298.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import spaces
from scipy.spatial.transform import Rotation

from gpc.errors import InputError, RunError, one_line, suggest
from gpc.installation import install
from gpc.rollout.env import Environment
from gpc.rollout.gl import choose_gl, undecided
from gpc.types import Array, Frame

logging.getLogger("robosuite_logs").addFilter(
    lambda record: record.levelno >= logging.ERROR
)  # it prints a page at import
try:
    with undecided():
        import robosuite
        from robosuite.controllers.composite import composite_controller_factory as controllers
        from robosuite.environments.base import REGISTERED_ENVS
        from robosuite.models.robots.robot_model import REGISTERED_ROBOTS
        from robosuite.utils import binding_utils
except ImportError as error:
    raise InputError(f"robosuite's tasks need robosuite ({error}): {install('robosuite')}") from error

FIXED = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "use_object_obs": True,
    "ignore_done": True,
}
"""Arguments that settings cannot change."""
STEADY = ("PickPlaceCan", "NutAssemblySquare", "ToolHang")
"""Tasks with one model for all episodes; others are built at every reset (Lift draws the size of its cube)."""
WORKSPACE = np.array([[-0.5, -0.6, 0.81], [0.6, 0.6, 1.6]])  # metres; the tables are 0.8 high


class Robosuite(Environment):
    """A task of robosuite with robomimic's observations.

    Observations of numbers, float64: "object", the objects' poses, also relative to the hand, as one vector;
    "robot0_eef_pos" (3,), "robot0_eef_quat" (4,) as x, y, z, w, "robot0_gripper_qpos" (2,), "robot0_joint_pos" (7,),
    ...

    Observations of each camera (agentview, robot0_eye_in_hand, ...): "CAMERA_image" (height, width, 3) uint8, right
    side up; "CAMERA_depth" (height, width, 1) float32, metres; "CAMERA_points" (points, 3) float32, metres in the world
    frame, the visible points inside the workspace after farthest point sampling (repeated if there are fewer).

    Actions are the controller's. By default OSC_POSE: for each arm (7,) in [-1, 1], translation by up to 0.05 m and
    rotation by up to 0.5 rad (axis-angle) in the world frame, then the gripper (-1 open, 1 closed).

    Success ends an episode.

    Args:
        observation_keys: observations to compute; None for all. Pictures are drawn for these only.
        max_steps: steps after which an episode is truncated.
        task: name of the task.
        absolute: whether actions are absolute: for each arm (10,), position in metres, rotation as the first two rows
            of its matrix (6D), the gripper.
        image_size: height and width of pictures.
        points: number of points in a cloud.
        settings: arguments of robosuite, as a robomimic checkpoint's `env_kwargs`; controllers of robosuite 1.4 are
        converted.

    Raises:
        InputError: If the task, a key or a setting is unknown.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's declaration)
    max_steps: int

    def __init__(
        self,
        observation_keys: Sequence[str] | None = None,
        max_steps: int = 400,
        task: str = "Lift",
        absolute: bool = False,
        image_size: Sequence[int] = (84, 84),
        points: int = 512,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.check_task(task)
        if max_steps < 1 or points < 1:
            raise InputError(f"{task}: max_steps={max_steps}, points={points}: give 1 or more")
        self.render_mode = "rgb_array"
        self.task, self.max_steps, self.absolute, self.points = task, max_steps, absolute, points
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self._env, configs = _make(task, settings or {}, absolute)
        self._canvas: tuple[Any, _Canvas] | None = None
        self._steps = 0
        known = self._spaces()
        keys = tuple(known if observation_keys is None else observation_keys)
        unknown = sorted(set(keys) - set(known))
        if unknown or not keys:
            raise InputError(f"{task} observations {unknown or '(none)'}: choose from {', '.join(known)}")
        if observation_keys is not None and self._cameras(keys):
            choose_gl()  # raises now, not in the first episode
        self._keys = keys
        space: Any = spaces.Dict({key: known[key] for key in keys})
        self.observation_space = space
        self.action_space = self._actions(configs)

    @staticmethod
    def check_task(task: str) -> None:
        """Check the name of a task.

        Raises:
            InputError: If robosuite has none of this name.
        """
        if task not in REGISTERED_ENVS:
            raise InputError(f"robosuite has no task {task!r}{suggest(task, list(REGISTERED_ENVS))}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start the episode that robosuite draws after `numpy.random.seed(seed)`."""
        super().reset(seed=seed)
        with _drawing(int(self.np_random.integers(2**32)) if seed is None else seed):
            self._env.reset()
        self._steps = 0
        return self.observe(), {"is_success": self._success()}

    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        """Execute one action, for 0.05 s at 20 Hz.

        Raises:
            RunError: If the action is not finite or has another shape.
        """
        action = np.asarray(action, np.float64)
        wanted = self.action_space.shape
        if action.shape != wanted or not np.isfinite(action).all():
            raise RunError(
                f"{self.task}: action {action.tolist()} is not {wanted} finite numbers: look at the policy's output"
            )
        _, reward, _, _ = self._env.step(axis_angle_actions(action) if self.absolute else action)
        self._env._update_observables(force=True)
        self._steps += 1
        success = self._success()
        return float(reward), success, self._steps >= self.max_steps, {"is_success": success}

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Return these observations in new arrays."""
        keys = self._keys if keys is None else keys
        frame = self._state()
        for camera in self._cameras(keys):
            frame |= self._view(camera, f"{camera}_points" in keys)
        return {key: frame[key] for key in keys}

    def render(self) -> Array:
        """Return the picture of a camera in front of the robot, (256, 256, 3) uint8."""
        return self._draw("agentview", 256, 256)[0]

    def close(self) -> None:
        """Free the simulation."""
        self._canvas = None
        self._env.close()

    def _spaces(self) -> dict[str, spaces.Box]:
        """Return the spaces of all observations."""
        known: dict[str, spaces.Box] = {
            key: spaces.Box(-np.inf, np.inf, value.shape, value.dtype.type) for key, value in self._state().items()
        }
        for camera in self._env.sim.model.camera_names:
            known[f"{camera}_image"] = spaces.Box(0, 255, (*self.image_size, 3), np.uint8)
            known[f"{camera}_depth"] = spaces.Box(0, np.inf, (*self.image_size, 1), np.float32)
            known[f"{camera}_points"] = spaces.Box(-np.inf, np.inf, (self.points, 3), np.float32)
        return known

    def _cameras(self, keys: Collection[str]) -> list[str]:
        """Return the cameras that these observations need."""
        kinds = ("image", "depth", "points")
        return [c for c in self._env.sim.model.camera_names if any(f"{c}_{kind}" in keys for kind in kinds)]

    def _actions(self, configs: Sequence[Mapping[str, Any]]) -> spaces.Box:
        low, high = self._env.action_spec
        if self.absolute and len(low) != 7 * len(self._env.robots):
            raise InputError(
                f"{self.task}: absolute actions are for arms with OSC_POSE and a gripper, (7,) each, not {low.shape}"
            )
        parts = [part for config in configs for part in config["body_parts"].values()]
        if any(part.get("input_type") == "absolute" for part in parts):
            size = len(low) // 7 * 10 if self.absolute else len(low)
            return spaces.Box(-np.inf, np.inf, (size,), np.float32)
        return spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def _success(self) -> bool:
        return bool(self._env._check_success())

    def _state(self) -> Frame:
        """Return all observations except those of cameras."""
        values = self._env._get_observations()
        robots = tuple(robot.robot_model.naming_prefix for robot in self._env.robots)
        names = [key for key in values if key.startswith(robots) and not key.endswith("proprio-state")]
        return {
            "object": np.array(values["object-state"], np.float64),
            **{key: np.array(values[key], np.float64) for key in names},
        }

    def _view(self, camera: str, cloud: bool) -> Frame:
        """Return the observations of a camera."""
        image, depth = self._draw(camera, *self.image_size)
        frame = {f"{camera}_image": image, f"{camera}_depth": depth[..., None]}
        if cloud:
            index = self._env.sim.model.camera_name2id(camera)
            pose = self._env.sim.data.cam_xmat[index].reshape(3, 3), self._env.sim.data.cam_xpos[index]
            points = world_points(depth, float(self._env.sim.model.cam_fovy[index]), *pose)
            inside = ((points > WORKSPACE[0]) & (points < WORKSPACE[1])).all(-1)
            frame[f"{camera}_points"] = thin(points[inside], self.points).astype(np.float32)
        return frame

    def _draw(self, camera: str, height: int, width: int) -> tuple[Array, Array]:
        if self._canvas is None or self._canvas[0] is not self._env.sim:
            self._canvas = self._env.sim, _canvas_for(self._env.sim)
        sim, canvas = self._canvas
        return canvas.draw(sim, camera, height, width)


class _Canvas:
    """An off-screen GL context for a model; drawing does not change a simulation."""

    def __init__(self, sim: Any) -> None:
        self._graphics = _graphics(sim)
        binding_utils._MUJOCO_GL = choose_gl()  # robosuite reads it once, at import
        # robosuite would advance the simulation here, and the episode would depend on the time of its first picture
        still = SimpleNamespace(
            model=sim.model, data=sim.data, forward=lambda: None, add_render_context=lambda context: None
        )
        self._context = binding_utils.MjRenderContextOffscreen(still, device_id=-1)
        self._context.vopt.geomgroup[0] = 0  # shapes for collisions

    def fits(self, sim: Any) -> bool:
        """Return whether a simulation has these meshes and textures."""
        return all(np.array_equal(*pair) for pair in zip(self._graphics, _graphics(sim), strict=True))

    def draw(self, sim: Any, camera: str, height: int, width: int) -> tuple[Array, Array]:
        """Return picture (height, width, 3) uint8 and depth (height, width) in metres."""
        self._context.gl_ctx.make_current()  # robosuite does not, and two contexts return each other's pictures
        self._context.model, self._context.data = sim.model, sim.data
        self._context.render(width, height, sim.model.camera_name2id(camera))
        image, depth = self._context.read_pixels(width, height, depth=True)
        extent, planes = sim.model.stat.extent, sim.model.vis.map
        near, far = planes.znear * extent, planes.zfar * extent
        metres = near / (1.0 - depth * (1.0 - near / far))
        return image[::-1].copy(), metres[::-1].astype(np.float32)


_CANVASES: list[_Canvas] = []
"""Canvases of this process; all episodes of a task share one, which takes half a second and 170 MB."""


def _canvas_for(sim: Any) -> _Canvas:
    for canvas in _CANVASES:
        if canvas.fits(sim):
            return canvas
    _CANVASES.append(_Canvas(sim))
    return _CANVASES[-1]


def _graphics(sim: Any) -> tuple[Array, ...]:
    """Return the parts of a model that a GL context keeps."""
    m = sim.model
    meshes = (m.mesh_vert, m.mesh_normal, m.mesh_texcoord, m.mesh_face, m.mesh_vertadr, m.mesh_faceadr)
    return (*meshes, m.tex_data, m.tex_adr, m.tex_height, m.tex_width, m.hfield_data, m.skin_vert)


def world_points(depth: Array, fovy: float, rotation: Array, position: Array) -> Array:
    """Convert a depth picture to points (height * width, 3) in the world frame.

    Args:
        depth: (height, width), metres.
        fovy: vertical field of view, degrees.
        rotation: (3, 3), of MuJoCo's camera, whose view is along its -z with y up.
        position: (3,), of the camera.
    """
    height, width = depth.shape
    slope = 2 * np.tan(np.radians(fovy) / 2) / height
    down, right = np.mgrid[:height, :width] + 0.5
    rays = np.stack([(right - width / 2) * slope, (height / 2 - down) * slope, -np.ones_like(depth)], -1)
    points: Array = (rays * depth[..., None]).reshape(-1, 3) @ rotation.T + position
    return points


def thin(points: Array, count: int) -> Array:
    """Select `count` of the points (N, 3), each the farthest from those before.

    Farthest point sampling (Eldar et al. 1997). Fewer points are repeated; without any the result is zeros.
    """
    if len(points) <= count:
        return np.resize(points, (count, 3)) if len(points) else np.zeros((count, 3))
    chosen = np.zeros(count, np.intp)
    nearest = np.full(len(points), np.inf)
    for i in range(1, count):
        nearest = np.minimum(nearest, ((points - points[chosen[i - 1]]) ** 2).sum(-1))
        chosen[i] = nearest.argmax()
    return points[chosen]


def axis_angle_actions(actions: Array) -> Array:
    """Convert absolute actions (..., arms * 10) to the controller's (..., arms * 7).

    6D rotations (Zhou et al. 2019, arXiv:1812.07035) are the first two rows of the matrix, orthonormalised here; the
    controller takes axis-angle vectors.
    """
    arms = actions.reshape(*actions.shape[:-1], -1, 10)
    first, second = arms[..., 3:6], arms[..., 6:9]
    first = first / np.linalg.norm(first, axis=-1, keepdims=True)
    second = second - (first * second).sum(-1, keepdims=True) * first
    second = second / np.linalg.norm(second, axis=-1, keepdims=True)
    matrix = np.stack([first, second, np.cross(first, second)], -2)
    vector = Rotation.from_matrix(matrix.reshape(-1, 3, 3)).as_rotvec().reshape(first.shape)
    joined: Array = np.concatenate([arms[..., :3], vector, arms[..., 9:]], -1)
    return joined.reshape(*actions.shape[:-1], -1)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Seed the global generators, which robosuite uses, and restore them afterwards."""
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])


def _make(task: str, settings: Mapping[str, Any], absolute: bool) -> tuple[Any, list[dict[str, Any]]]:
    """Make robosuite's environment, and return it with its robots' controllers."""
    try:
        arguments = _arguments(task, settings, absolute)
        with _drawing(0):
            env = robosuite.make(task, **arguments)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InputError(f"robosuite cannot make {task}: {one_line(error)}") from None
    update = env._update_observables  # robosuite calls it 25 times in a step, and reads its sensors in the last
    env._update_observables = lambda force=False: update(force) if force else None
    env._update_observables(force=True)
    return env, arguments["controller_configs"]


def _arguments(task: str, settings: Mapping[str, Any], absolute: bool) -> dict[str, Any]:
    """Return robosuite's arguments."""
    arguments = deepcopy(dict(settings))
    robots = _listed(arguments.pop("robots", ["Panda"] * (2 if task.startswith("TwoArm") else 1)), 1)
    configs = _listed(arguments.pop("controller_configs", None), len(robots))
    if any(config is not None and controllers.is_part_controller_config(config) for config in configs):
        arguments.setdefault("lite_physics", False)  # robosuite 1.4 had no other
    parts = {
        "robots": robots,
        "controller_configs": [_controller(*c, absolute) for c in zip(configs, robots, strict=True)],
    }
    return {"hard_reset": task not in STEADY, **arguments, **parts, **FIXED}


def _listed(value: Any, count: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * count


def _controller(config: dict[str, Any] | None, robot: str, absolute: bool) -> dict[str, Any]:
    """Return a composite controller of robosuite 1.5, in the world frame by default."""
    if config is None:
        config = controllers.load_composite_controller_config(robot=robot)
        for part in config["body_parts"].values():
            part["input_ref_frame"] = "world"
    elif controllers.is_part_controller_config(config):  # of robosuite 1.4, which had the world frame only
        arms = REGISTERED_ROBOTS[robot].arms
        config = controllers.refactor_composite_controller_config({"input_ref_frame": "world"} | config, robot, arms)
    for part in config["body_parts"].values():
        if not part.pop("control_delta", True):  # its name until robosuite 1.4; 1.5 ignores it
            part.setdefault("input_type", "absolute")
        if absolute:
            part |= {"input_type": "absolute", "input_ref_frame": "world"}
    return config
