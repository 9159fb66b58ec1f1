"""One period of the control loop on a robot, and lockstep: virtual time, in which a simulated robot waits for its driver."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event as Flag
from typing import NamedTuple, Protocol

import numpy as np

from gpc.bridge.chunk_source import Planner, answer
from gpc.bridge.clock import RealClock, TimeSource, VirtualClock
from gpc.bridge.controller import HOLD, OK, STOPPED, Ask, Event, Pilot, Reply
from gpc.bridge.robot import Reading, Robot, Wiring
from gpc.bridge.stop import Operator
from gpc.errors import GpcError, InputError, RunError, described, one_line
from gpc.types import Array, Frame

LIVE, SHADOW, DRY_RUN = MODES = ("live", "shadow", "dry-run")


class Tick(NamedTuple):
    """What happened in one period."""

    at: float
    mode: str  # the pilot's
    asked: Array  # what was to be sent, (dim,); NaN where nothing was
    sent: Array  # what the robot says was sent; in shadow, where it is; NaN where it does not say
    chunk: int  # the number of the chunk behind it, -1 where there is none
    age: float  # of that chunk's observation, seconds
    late: float  # after the period's deadline, seconds
    frame: Frame | None  # the observation, at the beginning of a step


class Sink(Protocol):
    """Where ticks and events go; must return at once."""

    def tick(self, tick: Tick) -> None:
        """Keep a period."""

    def event(self, event: Event) -> None:
        """Keep an event."""


class Nobody:
    """Keeps nothing."""

    def tick(self, tick: Tick) -> None:
        """See `Sink`."""

    def event(self, event: Event) -> None:
        """See `Sink`."""


@dataclass
class Loop:
    """Robot, pilot and record, once in a period: `sense`, hand in replies, `drive`. Only mode "live" ever sends.

    A sending waits until its step keeps the limit of velocity, measured by `clock` from the sending before; never less than
    `safety.SHORTEST` of a period.
    """

    robot: Robot
    wiring: Wiring
    pilot: Pilot
    mode: str
    sink: Sink = field(default_factory=lambda: Nobody())
    cut: Flag = field(default_factory=Flag)  # once set, nothing is sent any more
    clock: TimeSource = field(default_factory=RealClock)
    _frame: Frame | None = None
    _where: Array | None = None
    _sent_at: float = -np.inf

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode}: choose one of {', '.join(MODES)}")

    def read(self) -> tuple[Frame, Array | None]:
        """Read the robot: its observation, and where it is in the terms of its actions (dim,), if it is built to say so.

        Raises:
            RunError: a feature is missing, or a number is not finite; beside whatever a driver raises.
        """
        reading = self.robot.get_observation()
        return self.wiring.frame(reading), self._position(reading)

    def sense(self) -> Ask | None:
        """Read the robot at the beginning of a step; the chunk to ask for, if one is due."""
        self._frame = None
        if not self.pilot.begins_step:
            return None
        now, gate = self.clock.now(), self.pilot.gate
        try:
            frame, self._where = self.read()
        except Exception as error:  # whatever a driver raises
            self._where = None
            self.pilot.failed(now, _described(error))
            return None
        # until there is an action to follow, the stream starts where the robot is now
        idle = self.mode != LIVE and self.pilot.mode == HOLD
        if (idle or not gate.begun) and (why := gate.start(self._where)):
            self.pilot.failed(now, why)
            return None
        self._frame = frame
        return self.pilot.observe(now, frame)

    def drive(self, late: float = 0.0) -> None:
        """Send what the pilot decides, and record it."""
        now = self.clock.now()
        asked, sent = self.pilot.act(now), None
        if asked is not None and self.mode == LIVE:
            sent = self._send(now, asked)
        elif self.mode == SHADOW:
            sent = self._where
        nothing = np.full(len(self.wiring.actions), np.nan)
        source = self.pilot.source if self.pilot.mode == OK else None
        self.sink.tick(
            Tick(
                at=now,
                mode=self.pilot.mode,
                asked=nothing if asked is None else asked,
                sent=nothing if sent is None else sent,
                chunk=source.number if source else -1,
                age=now - source.at if source else np.nan,
                late=late,
                frame=self._frame,
            )
        )
        self.report()

    def report(self) -> None:
        """Hand the pilot's events to the record."""
        for event in self.pilot.events:
            self.sink.event(event)
        self.pilot.events.clear()

    @property
    def over(self) -> bool:
        """Stopped, and nothing left to brake."""
        return self.pilot.mode == STOPPED and (self.pilot.gate.at_rest or self.mode != LIVE)

    def _send(self, decided: float, action: Array) -> Array | None:
        """Send an action in its time; one that was decided before a pause of the process is not sent."""
        pilot = self.pilot
        self.clock.wait(self._sent_at + pilot.gate.pause)
        now = self.clock.now()
        if self.cut.is_set():
            return None
        if now - decided > pilot.patience.observation_deadline:
            pilot.gate.withdraw()
            pilot.interrupt(now, f"nothing could be sent for {now - decided:.3f} s")
            return None
        self._sent_at = now
        try:
            return self.wiring.action(self.robot.send_action(self.wiring.command(action)))
        except Exception as error:  # whatever a driver raises
            pilot.stop(now, f"the robot did not take an action: {_described(error)}")
            return None

    def _position(self, reading: Reading) -> Array | None:
        """Where the robot is, in the terms of its actions; None if it is not built to say so."""
        lacking = [name for name in self.wiring.actions if name not in reading]
        if lacking and self.says_where:
            raise RunError(f"the robot's observation lacks the feature {lacking[0]!r}")
        return None if lacking else self.wiring.position(reading)

    @cached_property
    def says_where(self) -> bool:
        """Whether the robot's readings must contain all features of the actions."""
        return set(self.wiring.actions) <= set(self.robot.observation_features)


def lockstep(
    loop: Loop, planner: Planner, period: float, steps: int, latency: float = 0.0, operator: Operator | None = None
) -> int:
    """Fly `steps` periods in virtual time: a reply is handed in at the first period `latency` seconds after its ask, or later.

    Ends early if the pilot stops, as it does if the operator asks for it. With latency 0 the actions are those of
    `gpc evaluate`. Returns how many were flown.
    """
    loop.clock, operator = VirtualClock(), operator or Operator()
    coming: deque[tuple[float, Reply]] = deque()
    for i in range(steps):
        loop.clock.wait(now := i * period)
        operator.look()
        if operator.why:
            loop.pilot.stop(now, operator.why)
        if ask := loop.sense():
            coming.append((now + latency - period * 1e-6, answer(planner, ask)))
        while coming and coming[0][0] <= now:
            loop.pilot.receive(now, coming.popleft()[1])
        loop.drive()
        if loop.over:
            return i + 1
    operator.finish()
    return steps


def _described(error: Exception) -> str:
    return one_line(error) if isinstance(error, GpcError) else described(error)
