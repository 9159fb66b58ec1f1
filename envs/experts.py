"""Scripted experts for robosuite's Lift, PickPlaceCan and NutAssemblySquare (Panda, OSC_POSE deltas, 20 Hz).

An expert sees "object", "robot0_eef_pos" and "robot0_eef_quat" of a frame and nothing else. It is deliberately multi-modal:
`Modes` are drawn for an episode, so that the same frame has several good answers. It is closed-loop: when the object is
lost or a phase takes too long, it tries again. Its actions carry a slow noise, so that demonstrations hold corrections.

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

METRES, RADIANS = 0.05, 0.5  # what an action of one asks for
GAIN = 2.0  # of the way that is left, per step: the controller moves about 0.3 of what is asked
OPEN, CLOSED = -1.0, 1.0
REACH = 0.26  # metres: the farthest x at which the arm still holds the gripper upright
YAWS = (-1.9, 2.6)  # where the Panda's last joint can turn the gripper, with a margin
TAIL = 5  # steps that an episode goes on after its success
LOST = 0.035  # metres between gripper and grasp point beyond which the object is not held
PATIENCE = 100  # steps after which a phase is given up
FREE, HIGHEST = 0.1, 0.2  # metres to the target within which a bent way grows straight; where an arc is highest
FUNNEL, STRAIGHT = 2.0, 0.006  # slope of the way down, and how far sideways (metres) it may be off at the bottom
NOISE, MEMORY = 0.06, 0.85  # noise of an action: its innovation, and what stays of it for the next

SIDES = {"left": 0.5, "straight": 0.0, "right": -0.5}
ARCS = {"low": 0.0, "high": 0.5}
SPEEDS = {"slow": 0.75, "fast": 1.1}
Anchor = Literal["object", "goal", "here"]


@dataclass(frozen=True)
class Modes:
    """What is drawn for an episode: the side and arc of free ways, which grasp (see `Task.grasps`), and the speed."""

    side: str
    arc: str
    grasp: str
    speed: str


@dataclass(frozen=True)
class Grasp:
    """A point of the object, in its own frame, and which of the yaws that fit it: 0 is the least turn, 1 the next."""

    point: tuple[float, float, float]
    turn: int = 0


@dataclass(frozen=True)
class Phase:
    """One row of a task's table: where the gripper goes, how it holds its fingers, and when this is over.

    The target is `height` above an anchor: the grasp point of the "object", "here" (where the phase began), or the
    place of the gripper that brings the object to the "goal". A phase ends after `steps` of them or, without `steps`,
    within `within` metres of the target. `bent` ways leave the straight line as the modes say; where the object is
    `held`, losing it begins the task again.
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
    """What differs between tasks.

    `position` is where the object's position begins in "object" (its quaternion follows). `symmetry` is the turn about the
    vertical after which a gripper finds the same object; the yaw of a `round` one means nothing. The object's place is
    `goal` in the end; an `aligned` one's yaw is then a multiple of a right angle.
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
    """A frame, taken apart: positions (3,) in metres, rotations, yaws in radians."""

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
    """One episode of a scripted expert; the same seed and frames give the same actions.

    Raises InputError where the task is not one of `TASKS`.
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
        """The action (7,) for the next frame of the episode."""
        scene = self._see(frame)
        if self.tries == 0 or self._failed(scene):
            self._begin(scene)
        elif self._over(scene):
            self._enter(scene, self._index + 1)
        self._steps += 1
        return self._move(scene)

    @property
    def phase(self) -> str:
        """The name of the phase."""
        return list(self._task.phases)[self._index]

    @property
    def _phase(self) -> Phase:
        return self._task.phases[self.phase]

    def _see(self, frame: Frame) -> Scene:
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
        return bool(lost) or self._steps > PATIENCE

    def _over(self, scene: Scene) -> bool:
        if self._phase.steps:
            return self._steps >= self._phase.steps
        near = np.linalg.norm(self._target(scene) - scene.hand) < self._phase.within
        return bool(near) and abs(self._turn(scene)) < 0.15

    def _point(self, scene: Scene) -> Array:
        """Where the object is to be grasped (3,)."""
        point: Array = scene.object + scene.object_rotation.apply(self._grasp.point)
        return point

    def _target(self, scene: Scene) -> Array:
        """Where the gripper goes (3,)."""
        anchors: dict[Anchor, Array] = {
            "object": self._point(scene),
            "here": self._here,
            "goal": scene.hand + self._task.goal - scene.object,
        }
        return anchors[self._phase.anchor] + np.array([0.0, 0.0, self._phase.height]) + self._jitter

    def _turn(self, scene: Scene) -> float:
        """What is left to turn about the vertical."""
        if self._phase.anchor == "object":
            self._yaw = _nearest(self._grasp_yaws(scene), self._yaw)
        elif self._phase.anchor == "goal" and self._task.aligned:
            self._yaw = _nearest(self._place_yaws(scene), scene.hand_yaw)
        return self._yaw - scene.hand_yaw

    def _grasp_yaws(self, scene: Scene) -> Array:
        return _reachable(scene.object_yaw + self._task.symmetry * np.arange(-4, 5))

    def _place_yaws(self, scene: Scene) -> Array:
        """The gripper's yaws that align the object, where the gripper itself stays within reach."""
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
        """Sideways and upwards, in proportion to the horizontal way that is left: a curve that ends at the target."""
        side, arc, far = SIDES[self.modes.side], ARCS[self.modes.arc], float(np.hypot(way[0], way[1]))
        return min(1.0, far / FREE) * np.array([-side * way[1], side * way[0], arc * min(far, HIGHEST)])


@dataclass(frozen=True)
class Episode:
    """What an expert did: frames before each action (steps of them), actions (steps, 7), rewards (steps,)."""

    frames: Sequence[Frame]
    actions: Array
    rewards: Array
    success: bool
    modes: Modes
    tries: int


def play(env: Environment, task: str, seed: int) -> Episode:
    """One episode: the environment and the expert both begin from `seed`; it ends `TAIL` steps after its success."""
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
    """Upwards by what is left sideways: fingers that are off do not come down on the object."""
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
