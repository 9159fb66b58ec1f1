"""A world for the control loop in which nothing is well: clock, robot and planner, in virtual time and drawn from one generator.

`fly` flies one episode of the loop as `gpc deploy` runs it (`RobotThread`), under random limits. What the robot received is
in the `Flight`; `complaints` checks it by the few lines of `check_stream`, which share nothing with `gpc.bridge.safety`.
"""

from dataclasses import dataclass, field

import numpy as np

from gpc.bridge.blending import RealTimeChunking, RecedingHorizon, TemporalEnsembling
from gpc.bridge.clock import VirtualClock
from gpc.bridge.controller import OK, ChunkController, ChunkReply, ChunkSpec, Watchdog
from gpc.bridge.loop import LIVE, ControlLoop
from gpc.bridge.realtime import LoopTimes, RobotThread
from gpc.bridge.robot import map_features
from gpc.bridge.safety import SafetyFilter, StreamLimits
from gpc.bridge.stop import StopSignal
from gpc.policy.spec import ObservationSpec

HORIZON, START, N_OBS_STEPS = 12, -1, 2
TOLERANCE = 1e-5  # of a limit
PAUSES = (0.3, 0.7, 6.0, 3600.0)  # seconds for which the process is suspended
READS = ("nan", "inf", "glitch", "jump", "exception", "missing", "shape", "text", "late", "hang", "frozen", "gone")
SENDS = ("slow", "refused", "garbage", "gone")
CHUNKS = ("good", "fast", "nan", "spike", "shape", "error", "huge", "off", "lost", "twice", "old", "type")


class HostileClock(VirtualClock):
    """Each call takes a moment, each wait ends late, and now and then the process is suspended, anywhere."""

    def __init__(self, rng, count):
        super().__init__(1000.0)
        self.rng, self.count = rng, count
        self.pauses = rng.choice([0.0, 0.002])

    def now(self):
        self.time += 2e-5 * self.rng.random()
        if self.rng.random() < self.pauses:
            self.time += self.rng.choice(PAUSES)
            self.count["pause"] += 1
        return self.time

    def wait(self, until):
        super().wait(until)
        self.time += self.rng.exponential(1e-4)
        self.now()


@dataclass
class Task:
    """What is asked of one episode: limits, rhythm and patience, drawn at random."""

    rng: np.random.Generator
    dim: int = field(init=False)

    def __post_init__(self):
        rng = self.rng
        self.dim, self.substeps = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 4]))
        self.dt = float(rng.choice([0.01, 0.02, 0.05]))
        self.relative = rng.random(self.dim) < 0.3 if self.substeps == 1 else np.zeros(self.dim, bool)
        width = rng.uniform(0.5, 2, self.dim)
        self.low, self.high = -width, width * rng.uniform(0.5, 1)
        velocity = rng.uniform(0.2, 2, self.dim)
        acceleration, jerk = velocity * rng.uniform(0.05, 0.5) / self.dt, velocity * rng.uniform(0.02, 0.2) / self.dt**2
        free = np.full(self.dim, np.inf)
        chosen = rng.integers(4)
        self.rates = (velocity, acceleration if chosen in (1, 3) else free, jerk if chosen in (2, 3) else free)
        step = self.dt * self.substeps
        self.watchdog = Watchdog(
            deadline=rng.uniform(2, 8) * step,
            max_age=rng.uniform(3, 12) * step,
            observation_deadline=rng.uniform(2, 5) * step,
            frozen_after=20 * step,
            stop_after=float(rng.choice([5 * step, 100 * step, 1e6])),
        )
        self.reports_position, self.seconds = rng.random() < 0.7, rng.uniform(200, 2000) * self.dt
        self.pressed_after = rng.uniform(0, 4) * self.seconds / self.dt  # sendings, then the stop key
        self.blender = [RecedingHorizon(4), RealTimeChunking(3), TemporalEnsembling(1, 0.1, 6)][rng.integers(3)]

    def limits(self):
        return StreamLimits(self.low, self.high, *self.rates, relative=self.relative, dt=self.dt)


class HostileRobot:
    """Joints that are where they were sent, and a camera; `received` is (time, *action) of every sending."""

    name, is_calibrated = "hostile", True

    def __init__(self, task, clock, count, stop_signal):
        self.task, self.clock, self.count, self.stop_signal, self.rng = task, clock, count, stop_signal, task.rng
        self.joints = [f"{i}.pos" for i in range(task.dim)]
        self.position = self.rng.uniform(0.9 * task.low, 0.9 * task.high)
        self.is_connected, self.received, self.seen = False, [], []
        self.started = None  # where it last said it was, before anything was sent
        self.rejected = False  # the first action that was sent: then it is recorded as a stop
        self.picture, self.frozen_until, self.reads = 0, 0.0, 0
        self.trouble = self.rng.choice([0.0, 0.003, 0.02])
        self.bad_start = int(self.rng.choice([0, 0, 0, 4, 400]))
        self.slow = self.rng.choice([0.0, 0.9])

    @property
    def observation_features(self):
        own = {name: float for name in self.joints} if self.task.reports_position else {}
        return own | {f"state.{i}": float for i in range(self.task.dim)} | {"front": (2, 2, 3), "depth": (2, 2, 1)}

    @property
    def action_features(self):
        return dict.fromkeys(self.joints, float)

    def connect(self, calibrate=True):
        self.is_connected = True

    def get_observation(self):
        began, self.reads = self.clock.time, self.reads + 1
        self.clock.time += self.rng.uniform(0, self.slow) * self.task.dt
        kind = self._kind()
        if kind == "gone":
            self.is_connected = False
        if not self.is_connected:
            raise ConnectionError("the robot is gone")
        self.picture += self.clock.time >= self.frozen_until
        reading = self._reading()
        if kind:
            self.count[f"read {kind}"] += 1
            reading = self._spoiled(kind, reading)
        start = (
            self.task.reports_position and not self.received and not self.task.relative.all()
        )  # then it must be in range
        if kind in ("", "jump", "late", "hang", "frozen") or (kind == "glitch" and not start):
            self.seen.append(began)
            if self.task.reports_position and not self.received:
                self.started = np.array([reading[name] for name in self.joints])
        return reading

    def _kind(self):
        if self.reads == 1:
            return ""  # when it is connected
        if self.reads < self.bad_start:
            return self.rng.choice(["nan", "inf", "glitch"])
        chosen = self.rng.choice(READS) if self.rng.random() < self.trouble else ""
        return chosen if chosen != "gone" or self.rng.random() < 0.05 else ""

    def _reading(self):
        reading = {f"state.{i}": float(value) for i, value in enumerate(self.position)}
        if self.task.reports_position:
            reading |= {name: float(value) for name, value in zip(self.joints, self.position, strict=True)}
        front = np.full((2, 2, 3), self.picture % 256, np.uint8)
        return reading | {"front": front, "depth": np.full((2, 2, 1), float(self.picture))}

    def _spoiled(self, kind, reading):
        numbers = [name for name in reading if name not in ("front", "depth")]
        name = self.rng.choice(numbers)
        match kind:
            case "nan" | "inf":
                reading[name] = np.nan if kind == "nan" else self.rng.choice([-np.inf, np.inf])
                if self.rng.random() < 0.2:
                    reading |= {name: 0.0, "depth": np.full((2, 2, 1), np.nan)}
            case "glitch":
                reading |= dict.fromkeys(numbers, float(self.rng.choice([-1000.0, 1000.0, 1e300])))
            case "jump":  # within the limits
                reading |= {name: self.rng.uniform(self.task.low.max(), self.task.high.min()) for name in numbers}
            case "exception":
                raise self.rng.choice([OSError("no status packet"), RuntimeError(), ValueError("checksum")])
            case "missing":
                del reading[name]
            case "shape":
                reading["front"] = np.zeros(self.rng.integers(0, 5, self.rng.integers(0, 4)), np.uint8)
                reading["depth"] = self.rng.choice([None, "none"])
            case "text":
                reading[name] = "far"
            case "late" | "hang":
                self.clock.time += self.task.dt * self.rng.uniform(0, 3 if kind == "late" else 200)
            case "frozen":
                self.frozen_until = self.clock.time + self.rng.uniform(0, 40) * self.task.dt
        return reading

    def send_action(self, action):
        self.received.append((self.clock.time, *(action[name] for name in self.joints)))
        done = np.array(self.received[-1][1:])
        if len(self.received) > self.task.pressed_after:
            self.stop_signal.request("the stop key", 130)
        self.position = np.where(self.task.relative, self.position + done, done)
        if self.rng.random() < self.trouble / 4:
            kind = self.rng.choice(SENDS)
            self.count[f"send {kind}"] += 1
            self.clock.time += self.rng.uniform(0, 2) * self.task.dt
            self.is_connected = self.is_connected and kind != "gone"
            self.rejected = self.rejected or len(self.received) == 1
            if kind in ("refused", "gone"):
                raise ConnectionError("no status packet")
            if kind == "garbage":
                return self.rng.choice([None, {}, dict.fromkeys(self.joints, np.nan), dict.fromkeys(self.joints, "?")])
        return action

    def disconnect(self):
        self.is_connected = False
        if self.rng.random() < 0.1:
            raise OSError("the port is busy")


class HostilePlanner:
    """In the place of `PlannerThread`: replies that are good, absurd, late, lost, doubled and out of order."""

    def __init__(self, task, robot, clock, count):
        self.task, self.robot, self.clock, self.count, self.rng = task, robot, clock, count, task.rng
        self.waiting, self.asked_at, self.spoiled = [], {}, 0
        self.trouble = self.rng.choice([0.0, 0.2, 0.6])
        self.delay = self.rng.choice([0.2, 1.0, 3.0]) * task.dt * task.substeps

    def request(self, request):
        self.asked_at[request.number] = request.at
        self.spoiled += not all(np.isfinite(value).all() for value in request.observation.values())
        kind = self.rng.choice(CHUNKS) if self.rng.random() < self.trouble else self.rng.choice(CHUNKS[:2])
        self.count[f"chunk {kind}"] += 1
        due = self.clock.time + self.rng.exponential(self.delay) * (20 if kind == "old" else 1)
        if kind != "lost":
            self.waiting += [(due, self._reply(request, kind))] * (2 if kind == "twice" else 1)

    def received(self):
        ready = [reply for due, reply in self.waiting if due <= self.clock.time]
        self.waiting = [pair for pair in self.waiting if pair[0] > self.clock.time]
        return [ready[i] for i in self.rng.permutation(len(ready))]

    def _reply(self, request, kind):
        chunk = self._chunk()
        match kind:
            case "fast":
                chunk = self._fast()
            case "nan":
                chunk[self.rng.integers(HORIZON), self.rng.integers(self.task.dim)] = self.rng.choice([np.nan, np.inf])
            case "spike":
                chunk[self.rng.integers(HORIZON)] += self.rng.normal(0, 0.3, self.task.dim)
            case "shape":
                chunk = self.rng.normal(0, 0.1, self.rng.integers(0, 15, self.rng.integers(0, 4)))
            case "error":
                return ChunkReply(request.number, None, "RuntimeError: out of memory")
            case "huge":
                chunk = chunk * self.rng.choice([1e3, 1e300])
            case "off":
                chunk = chunk + self.rng.normal(0, 0.3, self.task.dim)
            case "type":
                chunk = chunk.astype(self.rng.choice(["U4", "O", "complex128", "float16"]))
        return ChunkReply(request.number, chunk)

    def _chunk(self):
        """Faster and faster from where and how fast the robot is, towards some end of its range."""
        task, sent = (
            self.task,
            np.array(self.robot.received[-2:])[:, 1:] if self.robot.received else np.zeros((0, self.task.dim)),
        )
        speed = np.where(task.relative, sent[-1], sent[-1] - sent[0]) if len(sent) > 1 else np.zeros(task.dim)
        turn = np.where(
            np.abs(self.robot.position) > 0.3, -np.sign(self.robot.position), self.rng.choice([-1, 1], task.dim)
        )
        change = 0.5 * turn * np.min([limit * task.dt**order for order, limit in enumerate(task.rates, 1)], 0)
        most = 0.9 * task.rates[0] * task.dt
        steps = np.clip(speed + change * np.arange(HORIZON)[:, None], -most, most)
        return np.where(task.relative, steps, self.robot.position + task.substeps * (np.cumsum(steps, 0) - steps[0]))

    def _fast(self):
        """In one direction, as fast as the rates allow in the long run."""
        steps = 0.95 * np.sign(self.rng.standard_normal(self.task.dim)) * self.task.rates[0] * self.task.dt
        ahead = np.arange(HORIZON)[:, None] + START + 1
        return np.where(self.task.relative, steps, self.robot.position + self.task.substeps * steps * ahead)


class Modes:
    """The record: when all that was sent in mode ok was decided and sent, and its chunk. It ends a loop that does not end."""

    def __init__(self, robot, longest):
        self.robot, self.flown, self.periods, self.longest, self.sending_disabled = robot, [], 0, longest, None

    def record(self, record):
        self.periods += 1
        if self.periods > self.longest:
            self.sending_disabled.set()
        if record.mode == OK and self.robot.received and self.robot.received[-1][0] >= record.at:
            self.flown.append((record.at, self.robot.received[-1][0], record.chunk))

    def event(self, event):
        pass


@dataclass
class Flight:
    """One episode and all that is to be checked of it."""

    task: Task
    robot: HostileRobot
    source: HostilePlanner
    modes: Modes
    loop: ControlLoop
    thread: RobotThread
    ended: float

    def complaints(self):
        """What is wrong; empty if all is well."""
        received, deadline = (
            np.array(self.robot.received).reshape(-1, 1 + self.task.dim),
            self.task.watchdog.observation_deadline,
        )
        found = check_stream(received, self.task, self.robot.started)
        quiet = not len(received) or self.ended - received[-1, 0] > deadline
        if not (quiet or _at_rest(received, self.task, self.robot.started)):
            found.append("the end is not at rest")
        if self.loop.sending_disabled.is_set():
            found.append("the loop does not end")
        if self.robot.is_connected or self.thread.is_alive():
            found.append("the robot was not disconnected")
        if self.source.spoiled:
            found.append("a number that is not finite was planned from")
        begun = [sent for _, sent, _ in self.modes.flown[:1]]
        if len(received) and not self.robot.rejected and begun != [received[0, 0]]:
            found.append("something was sent before an action of a plan")
        return found + self._stale(deadline)

    def _stale(self, deadline):
        """Actions of plans that are older than a pause, or than a gap between two observations."""
        seen, found = np.array(self.robot.seen), []
        gaps = seen[1:][np.diff(seen) > deadline + 0.01]  # the observations that came after one
        for decided, sent, chunk in self.modes.flown:
            newest = seen[np.searchsorted(seen, decided, "right") - 1]
            if ((gaps > self.source.asked_at[chunk] + 0.005) & (gaps <= decided)).any():
                found.append(f"an old plan at {decided}")
            if sent - newest > deadline + 2 * self.task.dt + 0.01:
                found.append(f"an old observation at {decided}")
        return found


def _at_rest(received, task, start):
    """By the last step; the first counts from where the robot said it was, or as none."""
    actions = received[:, 1:]
    before = actions[-2] if len(actions) > 1 else actions[0] if start is None else start
    return bool((np.where(task.relative, actions[-1], actions[-1] - before) == 0).all())


def check_stream(received, task, start):
    """What the robot received, (n, 1 + dim) with the time first, against the limits; `start`: where it said it was."""
    if not len(received):
        return []
    at, actions, dt, limits = received[:, 0], received[:, 1:], task.dt, dict(zip((1, 2, 3), task.rates, strict=True))
    found = [] if np.isfinite(actions).all() else ["a number is not finite"]
    width = task.high - task.low
    if not ((actions >= task.low - TOLERANCE * width) & (actions <= task.high + TOLERANCE * width)).all():
        found.append("a position is out of range")
    gaps = np.diff(at)
    if not (gaps >= 0.9 * dt * (1 - TOLERANCE)).all():
        found.append(f"two sendings are {gaps.min():.4f} s apart, not {0.9 * dt:.4f}")
    first = actions[0] if start is None else start
    path = np.where(task.relative, np.cumsum(actions, 0), actions)  # what the robot follows
    path = np.concatenate([np.where(task.relative, 0, first)[None], path])
    steps = np.abs(np.diff(path, axis=0))
    real = np.minimum(np.concatenate([[dt], gaps]), dt)[:, None]
    if not (steps <= limits[1] * real * (1 + TOLERANCE)).all():
        found.append(f"velocity: {(steps / real / limits[1]).max():.2f} times the limit, by real time")
    return found + _bends(path, gaps, task, limits)


def _bends(path, gaps, task, limits):
    """Acceleration and jerk by the nominal period, between pauses so long that the robot has come to rest."""
    found, deadline = [], task.watchdog.observation_deadline
    doubtful = np.abs(gaps - deadline) < 2 * task.dt  # at rest or not
    cuts = [0, *(np.flatnonzero((gaps > deadline) | doubtful) + 1), len(path) - 1]
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        rested = begin == 0 or not doubtful[begin - 1]
        piece = (
            np.concatenate([path[begin : begin + 1]] * 3 + [path[begin + 1 : end + 1]])
            if rested
            else path[begin + 1 : end + 1]
        )
        for order in (2, 3):
            bend = np.abs(np.diff(piece, order, axis=0)) / task.dt**order
            if not (bend <= limits[order] * (1 + 100 * TOLERANCE)).all():
                found.append(f"derivative {order}: {(bend / limits[order]).max():.2f} times the limit")
    return found


def run_episode(seed, count):
    """One episode; `count` counts what happened in it."""
    rng = np.random.default_rng(seed)
    task, clock = Task(rng), HostileClock(rng, count)
    stop_signal = StopSignal()
    robot = HostileRobot(task, clock, count, stop_signal)
    source, modes = HostilePlanner(task, robot, clock, count), Modes(robot, 5 * task.seconds / task.dt)
    spec = ObservationSpec({"state": (task.dim,), "front": (2, 2, 3), "depth": (2, 2, 1)}, N_OBS_STEPS)
    feature_map = map_features(robot, spec, task.dim)
    expected = ChunkSpec(START, HORIZON, task.dim, N_OBS_STEPS, task.substeps)
    controller = ChunkController(
        expected, task.blender, SafetyFilter(task.limits(), feature_map.actions), task.watchdog
    )
    loop = ControlLoop(robot, feature_map, controller, LIVE, modes, clock=clock)
    thread = RobotThread(loop, source, LoopTimes(task.dt, task.seconds), stop_signal)
    modes.sending_disabled = loop.sending_disabled
    thread.control.set()
    thread.start()
    thread.join(60)
    return Flight(task, robot, source, modes, loop, thread, clock.time)
