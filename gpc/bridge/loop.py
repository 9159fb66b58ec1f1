"""One period of the control loop on a robot, and lockstep: virtual time, in which a simulated robot waits for its driver."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event as Flag
from typing import NamedTuple, Protocol

import numpy as np

from gpc.bridge.chunk_source import ChunkSource, reply_to
from gpc.bridge.clock import RealClock, TimeSource, VirtualClock
from gpc.bridge.controller import HOLD, OK, STOPPED, ChunkController, ChunkReply, ChunkRequest, Event
from gpc.bridge.robot import FeatureMap, Reading, Robot
from gpc.bridge.stop import StopSignal
from gpc.errors import GpcError, InputError, RunError, described, one_line
from gpc.types import Array, Frame

LIVE, SHADOW, DRY_RUN = MODES = ("live", "shadow", "dry-run")


class PeriodRecord(NamedTuple):
    """What happened in one period."""

    at: float
    mode: str  # the pilot's
    command: Array  # what was to be sent, (dim,); NaN where nothing was
    sent: Array  # what the robot says was sent; in shadow, where it is; NaN where it does not say
    chunk: int  # the number of the chunk behind it, -1 where there is none
    age: float  # of that chunk's observation, seconds
    late: float  # after the period's deadline, seconds
    frame: Frame | None  # the observation, at the beginning of a step


class Sink(Protocol):
    """Where ticks and events go; must return at once."""

    def record(self, record: PeriodRecord) -> None:
        """Keep a period."""

    def event(self, event: Event) -> None:
        """Keep an event."""


class NullSink:
    """Keeps nothing."""

    def record(self, record: PeriodRecord) -> None:
        """See `Sink`."""

    def event(self, event: Event) -> None:
        """See `Sink`."""


@dataclass
class ControlLoop:
    """Robot, pilot and record, once in a period: `sense`, hand in replies, `drive`. Only mode "live" ever sends.

    A sending waits until its step keeps the limit of velocity, measured by `clock` from the sending before; never less than
    `safety.SHORTEST` of a period.
    """

    robot: Robot
    feature_map: FeatureMap
    controller: ChunkController
    mode: str
    sink: Sink = field(default_factory=lambda: NullSink())
    sending_disabled: Flag = field(default_factory=Flag)  # once set, nothing is sent any more
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
        return self.feature_map.frame(reading), self._position(reading)

    def sense(self) -> ChunkRequest | None:
        """Read the robot at the beginning of a step; the chunk to ask for, if one is due."""
        self._frame = None
        if not self.controller.begins_step:
            return None
        now, safety_filter = self.clock.now(), self.controller.safety_filter
        try:
            frame, self._where = self.read()
        except Exception as error:  # whatever a driver raises
            self._where = None
            self.controller.failed(now, _described(error))
            return None
        # until there is an action to follow, the stream starts where the robot is now
        idle = self.mode != LIVE and self.controller.mode == HOLD
        if (idle or not safety_filter.active) and (reason := safety_filter.start(self._where)):
            self.controller.failed(now, reason)
            return None
        self._frame = frame
        return self.controller.observe(now, frame)

    def drive(self, late: float = 0.0) -> None:
        """Send what the pilot decides, and record it."""
        now = self.clock.now()
        command, sent = self.controller.act(now), None
        if command is not None and self.mode == LIVE:
            sent = self._send(now, command)
        elif self.mode == SHADOW:
            sent = self._where
        nothing = np.full(len(self.feature_map.actions), np.nan)
        accepted_request = self.controller.accepted_request if self.controller.mode == OK else None
        self.sink.record(
            PeriodRecord(
                at=now,
                mode=self.controller.mode,
                command=nothing if command is None else command,
                sent=nothing if sent is None else sent,
                chunk=accepted_request.number if accepted_request else -1,
                age=now - accepted_request.at if accepted_request else np.nan,
                late=late,
                frame=self._frame,
            )
        )
        self.report()

    def report(self) -> None:
        """Hand the pilot's events to the record."""
        for event in self.controller.events:
            self.sink.event(event)
        self.controller.events.clear()

    @property
    def finished(self) -> bool:
        """Stopped, and nothing left to brake."""
        return self.controller.mode == STOPPED and (self.controller.safety_filter.at_rest or self.mode != LIVE)

    def _send(self, decided: float, action: Array) -> Array | None:
        """Send an action in its time; one that was decided before a pause of the process is not sent."""
        controller = self.controller
        self.clock.wait(self._sent_at + controller.safety_filter.min_interval)
        now = self.clock.now()
        if self.sending_disabled.is_set():
            return None
        if now - decided > controller.watchdog.observation_deadline:
            controller.safety_filter.undo()
            controller.interrupt(now, f"nothing could be sent for {now - decided:.3f} s")
            return None
        self._sent_at = now
        try:
            return self.feature_map.action(self.robot.send_action(self.feature_map.command(action)))
        except Exception as error:  # whatever a driver raises
            controller.stop(now, f"the robot did not take an action: {_described(error)}")
            return None

    def _position(self, reading: Reading) -> Array | None:
        """Where the robot is, in the terms of its actions; None if it is not built to say so."""
        lacking = [name for name in self.feature_map.actions if name not in reading]
        if lacking and self.reports_position:
            raise RunError(f"the robot's observation lacks the feature {lacking[0]!r}")
        return None if lacking else self.feature_map.position(reading)

    @cached_property
    def reports_position(self) -> bool:
        """Whether the robot's readings must contain all features of the actions."""
        return set(self.feature_map.actions) <= set(self.robot.observation_features)


def run_lockstep(
    loop: ControlLoop,
    source: ChunkSource,
    period: float,
    steps: int,
    latency: float = 0.0,
    stop_signal: StopSignal | None = None,
) -> int:
    """Fly `steps` periods in virtual time: a reply is handed in at the first period `latency` seconds after its ask, or later.

    Ends early if the pilot stops, as it does if the operator asks for it. With latency 0 the actions are those of
    `gpc evaluate`. Returns how many were flown.
    """
    loop.clock, stop_signal = VirtualClock(), stop_signal or StopSignal()
    coming: deque[tuple[float, ChunkReply]] = deque()
    for i in range(steps):
        loop.clock.wait(now := i * period)
        stop_signal.poll()
        if stop_signal.reason:
            loop.controller.stop(now, stop_signal.reason)
        if request := loop.sense():
            coming.append((now + latency - period * 1e-6, reply_to(source, request)))
        while coming and coming[0][0] <= now:
            loop.controller.receive(now, coming.popleft()[1])
        loop.drive()
        if loop.finished:
            return i + 1
    stop_signal.finish()
    return steps


def _described(error: Exception) -> str:
    return one_line(error) if isinstance(error, GpcError) else described(error)
