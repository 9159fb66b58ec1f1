"""PushT (gym-pusht): push a T-shaped block onto a goal with a round tool.

Physics, initial states, observations and pictures are gym-pusht's, bit for bit. Its counting of contacts, its array
arithmetic in the control loop and its polygons are left out, and so is its iteration over a set of shapes, by which the
rewards of equal episodes differ.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from gpc.errors import InputError, RunError
from gpc.installation import install
from gpc.policy.observation import TASK, TASK_BYTES, write_text
from gpc.rollout.env import Environment
from gpc.types import Array, Frame

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # pygame, under setuptools 80 and 81
try:
    from gym_pusht.envs.pusht import PushTEnv
except ImportError as error:
    raise InputError(f"PushT needs gym-pusht ({error}): {install('pusht')}") from error

SUCCESS = 0.95  # coverage
STATES = ("gym_pusht", "diffusion_policy")
INSTRUCTION = "Push the T-shaped block onto the T-shaped target."  # LeRobot's data set has this task
SUBSTEPS, DT = 10, 0.01  # 10 control steps a second
STIFFNESS, DAMPING = 100.0, 20.0  # of the controller that drives the tool to the action

Point = tuple[float, float]
# The T in its own frame, gym-pusht's order: y down; OUTLINE goes round it.
BAR = ((-60, 0), (60, 0), (60, 30), (-60, 30))
STEM = ((-15, 30), (15, 30), (15, 120), (-15, 120))
VERTICES = np.array(BAR + STEM, np.float64)
OUTLINE = tuple((float(x), float(y)) for x, y in VERTICES[[0, 1, 2, 5, 6, 7, 4, 3]])
RECTANGLES = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))  # left, low, right, high
AREA = 6300.0
DIFFUSION_POLICY_POINTS = np.array(  # medians over 25,650 states of pusht_cchi_v7_replay.zarr ("keypoint", "state"); spread 0.03
    [(9.27, 90.04), (-60.98, -1.19), (60.91, -1.39), (-0.27, 25.54), (-14.07, 122.82), (39.0, 32.86), (-39.97, 32.73),
     (-16.82, 62.86), (23.54, -1.7)]
)  # fmt: skip
CENTRE, RADIUS = 45.9375, 75.57  # the smallest circle around the T: its centre is (0, CENTRE)


def diffusion_policy_state(seed: int) -> list[float]:
    """Return the initial state of Diffusion Policy's own environment.

    It is tool x, y, block x, y (pixels) and angle (radians), drawn in this order.
    """
    random = np.random.RandomState(seed)
    tool, block = random.randint(50, 450, 2), random.randint(100, 400, 2)
    return [*map(float, (*tool, *block)), random.randn() * 2 * math.pi - math.pi]


def keypoints(block_pose: Array) -> Array:
    """Compute the observation "keypoints", for demonstrations with poses only.

    Args:
        block_pose: (N, 3); x, y in pixels and the angle in radians.

    Returns:
        Vertices of the T, (N, 16): x0, y0, x1, y1, ...
    """
    return _placed(VERTICES, block_pose)


def _placed(points: Array, block_pose: Array) -> Array:
    """Return points (P, 2) of the T's frame at each pose, (N, 2 P)."""
    x, y, angle = np.asarray(block_pose, np.float64).T[..., None]
    cos, sin = np.cos(angle), np.sin(angle)
    across, along = points.T
    placed = np.stack([x + across * cos - along * sin, y + across * sin + along * cos], axis=-1)
    return placed.reshape(len(placed), 2 * len(points))


def coverage(block_pose: Sequence[float], goal_pose: Sequence[float]) -> float:
    """Return the share of the goal's area that the block covers, 0 to 1.

    A pose is x, y (pixels) and angle (radians).
    """
    turn = block_pose[2] - goal_pose[2]
    dx, dy = block_pose[0] - goal_pose[0], block_pose[1] - goal_pose[1]
    cos, sin = math.cos(goal_pose[2]), math.sin(goal_pose[2])
    x, y = dx * cos + dy * sin, dy * cos - dx * sin
    cos, sin = math.cos(turn), math.sin(turn)
    if math.hypot(x - CENTRE * sin, y + CENTRE * cos - CENTRE) > 2 * RADIUS:
        return 0.0
    block = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in OUTLINE]
    return sum(_overlap(block, *rectangle) for rectangle in RECTANGLES) / AREA


def _overlap(polygon: list[Point], left: float, low: float, right: float, high: float) -> float:
    """Return the area of a polygon inside a rectangle (Sutherland and Hodgman, 1974).

    The polygon is counter-clockwise, the rectangle upright.
    """
    for limit in (high, -left, -low, right):
        polygon = _cut_and_turn(polygon, limit)
    area = 0.0
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        area += x0 * y1 - x1 * y0
    return area / 2


def _cut_and_turn(polygon: list[Point], limit: float) -> list[Point]:
    """Return the part of a polygon with y <= limit, turned by a quarter."""
    part: list[Point] = []
    if not polygon:
        return part
    x0, y0 = polygon[-1]
    for x, y in polygon:
        if (y > limit) != (y0 > limit):
            part.append((limit, -(x0 + (x - x0) * (limit - y0) / (y - y0))))
        if y <= limit:
            part.append((y, -x))
        x0, y0 = x, y
    return part


class PushT(Environment):
    """PushT with any of its observations.

    state (5,): tool x, y, block x, y (pixels of a 512 x 512 table) and block angle in [0, 2 pi); keypoints (16,): the
    block's vertices x0, y0, x1, y1, ...; agent_pos (2,): tool x, y; pixels (96, 96, 3) uint8; obs (20,): the nine
    keypoints of Diffusion Policy's low-dimensional policies, then tool x, y; task: the instruction in words. Actions
    (2,) are positions of the tool. The reward is the coverage of the goal / 0.95, at most 1. An episode ends with
    success at a coverage of 0.95. Paper: Chi et al. 2023, Diffusion Policy, arXiv:2303.04137.

    Args:
        observation_keys: observations to compute.
        max_steps: steps after which an episode is truncated.
        states: whose initial state a seed has, "gym_pusht" or "diffusion_policy".

    Raises:
        InputError: If a key or `states` is unknown, or `max_steps` is less than 1.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (gymnasium's declaration)

    max_steps: int

    def __init__(
        self,
        observation_keys: Sequence[str] = ("state", "keypoints", "agent_pos", "pixels", "obs", TASK),
        max_steps: int = 300,
        states: str = "gym_pusht",
    ) -> None:
        known: dict[str, tuple[spaces.Box, Callable[[], Array]]] = {
            "state": (_positions(5), self._state),
            "keypoints": (_positions(16), self._keypoints),
            "agent_pos": (_positions(2), self._agent_pos),
            "pixels": (spaces.Box(0, 255, (96, 96, 3), np.uint8), self._pixels),
            "obs": (_positions(20), self._obs),
            TASK: (spaces.Box(0, 255, (TASK_BYTES,), np.uint8), lambda: write_text(INSTRUCTION)),
        }
        unknown = sorted(set(observation_keys) - set(known))
        if unknown or not observation_keys:
            raise InputError(f"PushT observations {unknown or '(none)'}: choose from {', '.join(known)}")
        if max_steps < 1:
            raise InputError(f"PushT: max_steps is {max_steps}, give 1 or more")
        if states not in STATES:
            raise InputError(f"PushT: states={states!r}: choose one of {', '.join(STATES)}")
        self.render_mode = "rgb_array"
        self.max_steps, self.states = max_steps, states
        space: Any = spaces.Dict({key: known[key][0] for key in observation_keys})
        self.observation_space = space
        self.action_space = spaces.Box(0.0, 512.0, (2,), np.float32)
        self._readers = {key: known[key][1] for key in observation_keys}
        self._stock = PushTEnv(visualization_width=384, visualization_height=384)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start gym-pusht's episode of `seed` (or of its option "reset_to_state")."""
        super().reset(seed=seed)
        if self.states == "diffusion_policy" and seed is not None:
            options = {"reset_to_state": diffusion_policy_state(seed), **(options or {})}
        self._stock.reset(seed=seed, options=options)
        self._stock._last_action = None  # otherwise the first picture has the last episode's action
        for shape in self._stock.space.shapes:
            shape.collision_type = 1  # gym-pusht counts contacts in Python between shapes of type 0
        self._goal = tuple(self._stock.goal_pose.tolist())
        self._steps = 0
        return self.observe(), self._info(self._coverage())

    def advance(self, action: Array) -> tuple[float, bool, bool, dict[str, Any]]:
        """Drive the tool towards `action` (2,), pixels, for 0.1 s.

        Raises:
            RunError: If the action is not two finite numbers.
        """
        target = [float(value) for value in action]
        if len(target) != 2 or not all(map(math.isfinite, target)):
            raise RunError(f"PushT: action {target} is not two finite numbers: look at the policy's output")
        goal_x, goal_y = target
        agent, step = self._stock.agent, self._stock.space.step
        vx, vy = agent.velocity
        for _ in range(SUBSTEPS):
            x, y = agent.position
            vx += (STIFFNESS * (goal_x - x) - DAMPING * vx) * DT
            vy += (STIFFNESS * (goal_y - y) - DAMPING * vy) * DT
            agent.velocity = vx, vy
            step(DT)
        self._stock._last_action = target
        self._steps += 1
        covered = self._coverage()
        info = self._info(covered)
        reward = min(covered / SUCCESS, 1.0)
        return reward, info["is_success"], self._steps >= self.max_steps, info

    def observe(self, keys: Collection[str] | None = None) -> Frame:
        """Return these observations in new arrays."""
        return {key: self._readers[key]() for key in (self._readers if keys is None else keys)}

    def render(self) -> Array:
        """Return a picture of the table and the last action, (384, 384, 3) uint8."""
        return np.asarray(self._stock.render())

    def pixels(self, actions: Array) -> Array:
        """Scale actions to pixels: the table of 512 units is 384 pixels wide."""
        return np.asarray(actions) * 384 / 512

    def _coverage(self) -> float:
        block = self._stock.block
        return coverage((*block.position, block.angle), self._goal)

    def _info(self, covered: float) -> dict[str, Any]:
        return {"is_success": covered >= SUCCESS, "coverage": covered}

    def _state(self) -> Array:
        agent, block = self._stock.agent, self._stock.block
        return np.array([*agent.position, *block.position, block.angle % (2 * np.pi)])

    def _keypoints(self) -> Array:
        return np.ravel(self._stock.get_keypoints(self._stock._block_shapes))

    def _obs(self) -> Array:
        return np.append(_placed(DIFFUSION_POLICY_POINTS, self._state()[None, 2:]), self._stock.agent.position)

    def _agent_pos(self) -> Array:
        return np.array(self._stock.agent.position)

    def _pixels(self) -> Array:
        return np.asarray(self._stock._render())


def _positions(size: int) -> spaces.Box:
    # Unbounded: the tool may overshoot the table's edge and squeeze the block past a wall.
    return spaces.Box(-np.inf, np.inf, (size,), np.float64)
