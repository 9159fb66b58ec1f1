"""One period of the control loop on a robot, and the lockstep clock: virtual time, in which a simulated robot waits for us."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from threading import Event as Flag
from typing import NamedTuple, Protocol

import numpy as np

from gpc.bridge.operator import Operator
from gpc.bridge.pilot import HOLD, OK, STOPPED, Ask, Event, Pilot, Reply
from gpc.bridge.planner import Planner, answer
from gpc.bridge.robot import Reading, Robot, Wiring
from gpc.env import Array, Frame
from gpc.errors import InputError

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
    """Robot, pilot and record, driven by a clock: `sense`, hand in replies, `drive`. Only mode "live" ever sends."""

    robot: Robot
    wiring: Wiring
    pilot: Pilot
    mode: str
    sink: Sink = field(default_factory=lambda: Nobody())
    cut: Flag = field(default_factory=Flag)  # once set, nothing is sent any more
    _frame: Frame | None = None
    _where: Array | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode}: choose one of {', '.join(MODES)}")

    def sense(self, now: float) -> Ask | None:
        """Read the robot at the beginning of a step, at `now`; the chunk to ask for, if one is due."""
        self._frame = None
        if not self.pilot.begins_step:
            return None
        try:
            reading = self.robot.get_observation()
            self._frame, self._where = self.wiring.frame(reading), self._position(reading)
        except Exception as error:  # whatever a driver raises
            self.pilot.failed(now, _told(error))
            return None
        gate = self.pilot.gate
        idle = (
            self.mode != LIVE and self.pilot.mode == HOLD
        )  # nothing followed what was asked: begin where the robot is
        if idle or gate.before is None:
            gate.start(self._where)
        return self.pilot.observe(now, self._frame)

    def drive(self, now: float, late: float = 0.0) -> None:
        """Send what the pilot decides, and record it."""
        asked, sent = self.pilot.act(now), None
        if asked is not None and self.mode == LIVE and not self.cut.is_set():
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

    def _send(self, now: float, action: Array) -> Array | None:
        try:
            return self.wiring.action(self.robot.send_action(self.wiring.command(action)))
        except Exception as error:  # whatever a driver raises
            self.pilot.stop(now, f"the robot did not take an action: {_told(error)}")
            return None

    def _position(self, reading: Reading) -> Array | None:
        """Where the robot is, in the terms of its actions, if it says so."""
        known = all(name in reading for name in self.wiring.actions)
        return self.wiring.action(reading) if known else None


def lockstep(
    loop: Loop, planner: Planner, period: float, steps: int, latency: float = 0.0, operator: Operator | None = None
) -> int:
    """Fly `steps` periods in virtual time: a reply is handed in at the first period `latency` seconds after its ask, or later.

    Ends early when the pilot stops, as it does when the operator asks for it. With latency 0 the actions are those of
    `gpc evaluate`. Returns how many were flown.
    """
    operator = operator or Operator()
    coming: deque[tuple[float, Reply]] = deque()
    for i in range(steps):
        now = i * period
        operator.look()
        if operator.why:
            loop.pilot.stop(now, operator.why)
        if ask := loop.sense(now):
            coming.append((now + latency - period * 1e-6, answer(planner, ask)))
        while coming and coming[0][0] <= now:
            loop.pilot.receive(now, coming.popleft()[1])
        loop.drive(now)
        if loop.over:
            return i + 1
    return steps


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
