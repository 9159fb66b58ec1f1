"""Scripted experts for robosuite's Lift, PickPlaceCan and NutAssemblySquare (Panda, OSC_POSE deltas, 20 Hz).

An expert reads "object", "robot0_eef_pos" and "robot0_eef_quat" of a frame only. It is multi-modal: `Modes` are drawn
for each episode, so that one frame has several good actions. It is closed-loop: it tries again if the object is lost or
a phase takes too long. A slow noise is added to its actions, so that demonstrations contain corrections.

An action is (dx, dy, dz, rx, ry, rz, gripper) in [-1, 1]: at most 0.05 m and 0.5 rad a step in the robot's base frame,
which is parallel to the world's; the gripper closes at 1. "object" holds (metres, quaternions xyzw, world frame):

    Lift               cube position (3), cube quaternion (4), cube - gripper (3)
    PickPlaceCan       can in the gripper's frame: position (3), quaternion (4); can position (3), can quaternion (4)
    NutAssemblySquare  the same of the square nut; its x axis points along the handle
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from gpc.errors import InputError
from gpc.rollout.env import Environment
from gpc.types import Array, Frame

METRES, RADIANS = 0.05, 0.5  # size of an action of 1
GAIN = 2.0  # of the remaining way, per step: the controller moves about 0.3 of an action
OPEN, CLOSED = -1.0, 1.0
REACH = 0.26  # metres: the farthest x at which the arm still holds the gripper upright
YAWS = (-1.9, 2.6)  # yaws that the Panda's last joint can reach, with a margin
TAIL = 5  # steps of an episode after its success
LOST = 0.035  # metres between gripper and grasp point beyond which the object is not held
MAX_STEPS = 100  # of a phase
FREE, HIGHEST = 0.1, 0.2  # metres to the target within which a bent way straightens; distance of the top of an arc
FUNNEL, STRAIGHT = 2.0, 0.006  # slope of the way down, and sideways error (metres) allowed at the bottom
NOISE, MEMORY = 0.06, 0.85  # noise of an action: innovation, and share kept for the next action

SIDES = {"left": 0.5, "straight": 0.0, "right": -0.5}
ARCS = {"low": 0.0, "high": 0.5}
SPEEDS = {"slow": 0.75, "fast": 1.1}
Anchor = Literal["object", "goal", "here"]


@dataclass(frozen=True)
class Modes:
    """Random choices of an episode: side and arc of free ways, grasp, speed."""

    side: str
    arc: str
    grasp: str
    speed: str


@dataclass(frozen=True)
class Grasp:
    """A point in the object's frame, and a yaw: 0 is the least turn, 1 the next."""

    point: tuple[float, float, float]
    turn: int = 0


@dataclass(frozen=True)
class Phase:
    """A phase of a task.

    Attributes:
        anchor: point below the target: the grasp point of the "object", "here" (the start of the phase), or the
            position of the gripper that brings the object to the "goal".
        height: metres of the target above the anchor.
        gripper: command of the gripper.
        within: distance to the target, in metres, at which the phase ends if `steps` is 0.
        steps: number of steps after which the phase ends.
        bent: whether the way is bent by the modes.
        held: whether the task restarts if the object is lost.
    """

    anchor: Anchor
    height: float
    gripper: float
    within: float = 0.0
    steps: int = 0
    bent: bool = False
    held: bool = False


PICK = {
    "approach": Phase("object", 0.07, OPEN, within=0.02, bent=True),
    "descend": Phase("object", 0.0, OPEN, within=0.007),
    "close": Phase("here", 0.0, CLOSED, steps=8),
}
LEAVE = {
    "release": Phase("here", 0.0, OPEN, steps=4),
    "leave": Phase("here", 0.2, OPEN, within=0.02),
}


@dataclass(frozen=True)
class Task:
    """A task of robosuite.

    Attributes:
        position: index of the object's position in "object"; its quaternion follows.
        grasps: name -> grasp.
        symmetry: turn about the vertical, in radians, that maps the object onto itself for a gripper.
        phases: name -> phase, in order.
        round: whether the yaw of the object is ignored.
        goal: final position of the object.
        aligned: whether the final yaw is a multiple of a right angle.
    """

    position: int
    grasps: Mapping[str, Grasp]
    symmetry: float
    phases: Mapping[str, Phase]
    round: bool = False
    goal: tuple[float, float, float] = (0.0, 0.0, 0.0)
    aligned: bool = False


TASKS = {
    "Lift": Task(
        position=0,
        grasps={"near": Grasp((0, 0, 0), 0), "far": Grasp((0, 0, 0), 1)},
        symmetry=np.pi / 2,
        phases=PICK | {"raise": Phase("here", 0.12, CLOSED, within=0.02, held=True)},
    ),
    "PickPlaceCan": Task(
        position=7,
        grasps={"near": Grasp((0, 0, 0.02), 0), "far": Grasp((0, 0, 0.02), 1)},
        symmetry=np.pi / 2,
        phases=PICK
        | {
            "raise": Phase("here", 0.14, CLOSED, within=0.03, held=True),
            "carry": Phase("goal", 0.14, CLOSED, within=0.04, bent=True, held=True),
            "lower": Phase("goal", 0.04, CLOSED, within=0.02, held=True),
        }
        | LEAVE,
        round=True,
        goal=(0.16, 0.35, 0.86),
    ),
    "NutAssemblySquare": Task(
        position=7,
        grasps={"inner": Grasp((0.06, 0, 0.0)), "outer": Grasp((0.07, 0, 0.0))},
        symmetry=np.pi,
        phases=PICK
        | {
            "raise": Phase("here", 0.16, CLOSED, within=0.03, held=True),
            "carry": Phase("goal", 0.14, CLOSED, within=0.006, bent=True, held=True),
            "lower": Phase("goal", 0.02, CLOSED, within=0.01, held=True),
        }
        | LEAVE,
        goal=(0.23, 0.10, 0.84),
        aligned=True,
    ),
}


@dataclass(frozen=True)
class Scene:
    """Positions (3,) in metres and rotations of a frame."""

    hand: Array
    hand_rotation: Rotation
    object: Array
    object_rotation: Rotation

    @property
    def hand_yaw(self) -> float:
        """Heading of the gripper's x axis; its fingers open along y."""
        return _yaw(self.hand_rotation)

    @property
    def object_yaw(self) -> float:
        """Heading of the object's x axis."""
        return _yaw(self.object_rotation)


class Expert:
    """A scripted expert in one episode; equal seeds and frames give equal actions.

    Raises:
        InputError: If the task is not one of `TASKS`.
    """

    def __init__(self, task: str, seed: int) -> None:
        if task not in TASKS:
            raise InputError(f"no expert for {task!r}; there is one for each of {', '.join(TASKS)}")
        self._task, self._rng = TASKS[task], np.random.default_rng(seed)
        self.modes = Modes(*(str(self._rng.choice(list(c))) for c in (SIDES, ARCS, self._task.grasps, SPEEDS)))
        self._grasp = self._task.grasps[self.modes.grasp]
        self._noise: Array = np.zeros(6)
        self.tries = 0

    def act(self, frame: Frame) -> Array:
        """Return the action (7,) for the next frame of the episode."""
        scene = self._scene(frame)
        if self.tries == 0 or self._failed(scene):
            self._begin(scene)
        elif self._over(scene):
            self._enter(scene, self._index + 1)
        self._steps += 1
        return self._move(scene)

    @property
    def phase(self) -> str:
        """Name of the phase."""
        return list(self._task.phases)[self._index]

    @property
    def _phase(self) -> Phase:
        return self._task.phases[self.phase]

    def _scene(self, frame: Frame) -> Scene:
        pose = frame["object"][self._task.position : self._task.position + 7]
        rotation = Rotation.identity() if self._task.round else Rotation.from_quat(pose[3:])
        return Scene(frame["robot0_eef_pos"], Rotation.from_quat(frame["robot0_eef_quat"]), pose[:3], rotation)

    def _begin(self, scene: Scene) -> None:
        """Choose the yaw of the grasp and enter the first phase."""
        self.tries += 1
        yaws = self._grasp_yaws(scene)
        yaws = yaws[np.argsort(np.abs(yaws - scene.hand_yaw))]
        self._yaw = float(yaws[min(self._grasp.turn, len(yaws) - 1)])
        self._enter(scene, 0)

    def _enter(self, scene: Scene, index: int) -> None:
        if index == len(self._task.phases):
            return self._begin(scene)
        self._index, self._steps, self._here = index, 0, scene.hand
        self._jitter = self._phase.within * self._rng.uniform(-0.3, 0.3, 3)

    def _failed(self, scene: Scene) -> bool:
        lost = self._phase.held and np.linalg.norm(self._point(scene) - scene.hand) > LOST
        return bool(lost) or self._steps > MAX_STEPS

    def _over(self, scene: Scene) -> bool:
        if self._phase.steps:
            return self._steps >= self._phase.steps
        near = np.linalg.norm(self._target(scene) - scene.hand) < self._phase.within
        return bool(near) and abs(self._turn(scene)) < 0.15

    def _point(self, scene: Scene) -> Array:
        """Return the grasp point (3,)."""
        point: Array = scene.object + scene.object_rotation.apply(self._grasp.point)
        return point

    def _target(self, scene: Scene) -> Array:
        """Return the target of the gripper (3,)."""
        anchors: dict[Anchor, Array] = {
            "object": self._point(scene),
            "here": self._here,
            "goal": scene.hand + self._task.goal - scene.object,
        }
        return anchors[self._phase.anchor] + np.array([0.0, 0.0, self._phase.height]) + self._jitter

    def _turn(self, scene: Scene) -> float:
        """Return the remaining turn about the vertical."""
        if self._phase.anchor == "object":
            self._yaw = _nearest(self._grasp_yaws(scene), self._yaw)
        elif self._phase.anchor == "goal" and self._task.aligned:
            self._yaw = _nearest(self._place_yaws(scene), scene.hand_yaw)
        return self._yaw - scene.hand_yaw

    def _grasp_yaws(self, scene: Scene) -> Array:
        return _reachable(scene.object_yaw + self._task.symmetry * np.arange(-4, 5))

    def _place_yaws(self, scene: Scene) -> Array:
        """Return the yaws that align the object and keep the gripper within reach."""
        turns = np.pi / 2 * np.arange(-4, 5) - scene.object_yaw
        arm = scene.hand - scene.object
        x = self._task.goal[0] + np.cos(turns) * arm[0] - np.sin(turns) * arm[1]
        return _reachable((scene.hand_yaw + turns)[x < REACH])

    def _move(self, scene: Scene) -> Array:
        speed, way = SPEEDS[self.modes.speed], self._target(scene) - scene.hand
        calm = min(1.0, float(np.linalg.norm(way)) / METRES)  # a steady hand near the target
        way = way + (self._bend(way) if self._phase.bent else _funnel(way))
        upright = Rotation.from_euler("ZX", [scene.hand_yaw + self._turn(scene), np.pi])
        turn = (upright * scene.hand_rotation.inv()).as_rotvec()
        self._noise = MEMORY * self._noise + NOISE * self._rng.standard_normal(6)
        move = np.concatenate(
            [
                _at_most(GAIN / METRES * way[:2], speed),
                _at_most(GAIN / METRES * way[2:], speed),
                _at_most(GAIN / RADIANS * turn, 0.6 * speed),
            ]
        )
        return np.append(np.clip(move + calm * self._noise, -1, 1), self._phase.gripper)

    def _bend(self, way: Array) -> Array:
        """Return an offset sideways and upwards, proportional to the remaining way."""
        side, arc, far = SIDES[self.modes.side], ARCS[self.modes.arc], float(np.hypot(way[0], way[1]))
        return min(1.0, far / FREE) * np.array([-side * way[1], side * way[0], arc * min(far, HIGHEST)])


@dataclass(frozen=True)
class Episode:
    """An expert's episode: frames before each action, actions (steps, 7), rewards."""

    frames: Sequence[Frame]
    actions: Array
    rewards: Array
    success: bool
    modes: Modes
    tries: int


def play(env: Environment, task: str, seed: int) -> Episode:
    """Play an episode of a seed; it ends `TAIL` steps after its success."""
    expert, (frame, _) = Expert(task, seed), env.reset(seed=seed)
    frames, actions, rewards = [], [], []
    truncated, left = False, None
    while not truncated and left != 0:
        frames.append(frame)
        actions.append(expert.act(frame))
        frame, reward, success, truncated, _ = env.step(actions[-1])
        rewards.append(reward)
        if left is not None or success:
            left = TAIL if left is None else left - 1
    return Episode(frames, np.stack(actions), np.array(rewards), left is not None, expert.modes, expert.tries)


def _funnel(way: Array) -> Array:
    """Return an offset upwards, so that fingers beside the object do not hit it."""
    return np.array([0.0, 0.0, FUNNEL * max(0.0, float(np.hypot(way[0], way[1])) - STRAIGHT)])


def _yaw(rotation: Rotation) -> float:
    x = rotation.apply([1.0, 0.0, 0.0])
    return float(np.arctan2(x[1], x[0]))


def _reachable(yaws: Array) -> Array:
    return yaws[(yaws >= YAWS[0]) & (yaws <= YAWS[1])]


def _nearest(yaws: Array, yaw: float) -> float:
    return float(yaws[np.argmin(np.abs(yaws - yaw))])


def _at_most(vector: Array, length: float) -> Array:
    return vector * min(1.0, length / max(float(np.linalg.norm(vector)), 1e-9))
