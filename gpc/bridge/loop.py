"""One period of the control loop on a robot, and virtual time, in which a simulated robot waits for its driver."""

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
from gpc.errors import GpcError, InputError, RunError, one_line, type_and_text
from gpc.types import Array, Frame

LIVE, SHADOW, DRY_RUN = MODES = ("live", "shadow", "dry-run")


class PeriodRecord(NamedTuple):
    """What happened in one period.

    Attributes:
        at: time of the decision.
        mode: mode of the controller.
        command: action that was to be sent, (dim,); NaN if there was none.
        sent: action that the robot reports as sent, (dim,); in shadow mode its position; NaN if it reports none.
        chunk: number of the chunk behind the action, -1 if there is none.
        age: age of that chunk's observation, in seconds.
        late: seconds after the period's deadline.
        frame: observation, at the beginning of a step.
    """

    at: float
    mode: str
    command: Array
    sent: Array
    chunk: int
    age: float
    late: float
    frame: Frame | None


class Sink(Protocol):
    """Receiver of the record; its methods must return at once."""

    def record(self, record: PeriodRecord) -> None:
        """Keep a period."""

    def event(self, event: Event) -> None:
        """Keep an event."""


class NullSink:
    """A sink that keeps nothing."""

    def record(self, record: PeriodRecord) -> None:
        """Drop a period."""

    def event(self, event: Event) -> None:
        """Drop an event."""


@dataclass
class ControlLoop:
    """Robot, controller and record.

    In each period call `sense`, pass the replies to the controller, then call `drive`.

    An action is sent when its step keeps the limit of velocity, measured by `clock` from the sending before, and never
    sooner than `safety.MIN_INTERVAL` periods after it.

    Attributes:
        robot: the robot.
        feature_map: its features, as the policy's arrays.
        controller: decides what to send.
        mode: "live" sends; "shadow" and "dry-run" never do.
        sink: receiver of the record.
        sending_disabled: once set, nothing is sent any more.
        clock: time of the loop.
    """

    robot: Robot
    feature_map: FeatureMap
    controller: ChunkController
    mode: str
    sink: Sink = field(default_factory=NullSink)
    sending_disabled: Flag = field(default_factory=Flag)
    clock: TimeSource = field(default_factory=RealClock)
    _frame: Frame | None = None
    _position: Array | None = None
    _sent_at: float = -np.inf

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode}: choose one of {', '.join(MODES)}")

    @property
    def finished(self) -> bool:
        """Whether the controller has stopped and nothing is left to brake."""
        return self.controller.mode == STOPPED and (self.controller.safety_filter.at_rest or self.mode != LIVE)

    @cached_property
    def reports_position(self) -> bool:
        """Whether the robot's readings must contain all features of its actions."""
        return set(self.feature_map.actions) <= set(self.robot.observation_features)

    def read(self) -> tuple[Frame, Array | None]:
        """Read the robot.

        Returns:
            Its observation, and its position in the terms of its actions, (dim,) or None if it reports none.

        Raises:
            RunError: If a feature is missing, or a number is not finite; beside what a driver raises.
        """
        reading = self.robot.get_observation()
        return self.feature_map.frame(reading), self._position_in(reading)

    def sense(self) -> ChunkRequest | None:
        """Read the robot at the beginning of a step; return the request that is due."""
        self._frame = None
        if not self.controller.step_begins:
            return None
        now, safety_filter = self.clock.now(), self.controller.safety_filter
        try:
            frame, self._position = self.read()
        except Exception as error:  # whatever a driver raises
            self._position = None
            self.controller.read_failed(now, _text(error))
            return None
        # until there is an action to follow, the stream starts where the robot is now
        idle = self.mode != LIVE and self.controller.mode == HOLD
        if (idle or not safety_filter.active) and (reason := safety_filter.start(self._position)):
            self.controller.read_failed(now, reason)
            return None
        self._frame = frame
        return self.controller.observe(now, frame)

    def drive(self, late: float = 0.0) -> None:
        """Send the action of a period that began `late` seconds late, and record it."""
        now = self.clock.now()
        command, sent = self.controller.act(now), None
        if command is not None and self.mode == LIVE:
            sent = self._send(now, command)
        elif self.mode == SHADOW:
            sent = self._position
        none = np.full(len(self.feature_map.actions), np.nan)
        request = self.controller.accepted_request if self.controller.mode == OK else None
        self.sink.record(
            PeriodRecord(
                at=now,
                mode=self.controller.mode,
                command=none if command is None else command,
                sent=none if sent is None else sent,
                chunk=request.number if request else -1,
                age=now - request.at if request else np.nan,
                late=late,
                frame=self._frame,
            )
        )
        self.report()

    def report(self) -> None:
        """Pass the controller's events to the record."""
        for event in self.controller.events:
            self.sink.event(event)
        self.controller.events.clear()

    def _send(self, decided_at: float, action: Array) -> Array | None:
        """Send an action at its time, unless the process was paused since it was chosen."""
        controller = self.controller
        self.clock.wait(self._sent_at + controller.safety_filter.min_interval)
        now = self.clock.now()
        if self.sending_disabled.is_set():
            return None
        if now - decided_at > controller.watchdog.observation_deadline:
            controller.safety_filter.undo()
            controller.interrupt(now, f"nothing could be sent for {now - decided_at:.3f} s")
            return None
        self._sent_at = now
        try:
            return self.feature_map.action(self.robot.send_action(self.feature_map.command(action)))
        except Exception as error:  # whatever a driver raises
            controller.stop(now, f"the robot did not take an action: {_text(error)}")
            return None

    def _position_in(self, reading: Reading) -> Array | None:
        """Return the position in the terms of the actions, None if it is not reported."""
        missing = [name for name in self.feature_map.actions if name not in reading]
        if missing and self.reports_position:
            raise RunError(f"the robot's observation lacks the feature {missing[0]!r}")
        return None if missing else self.feature_map.position(reading)


def run_lockstep(
    loop: ControlLoop,
    source: ChunkSource,
    period: float,
    steps: int,
    latency: float = 0.0,
    stop_signal: StopSignal | None = None,
) -> int:
    """Run an episode in virtual time.

    With latency 0 its actions are those of `gpc evaluate`.

    Args:
        loop: the loop; its clock is replaced.
        source: source of the chunks.
        period: seconds between two actions.
        steps: number of periods.
        latency: seconds from a request to the earliest period that receives the reply.
        stop_signal: request to stop.

    Returns:
        The number of periods, less than `steps` if the controller stopped.
    """
    loop.clock, stop_signal = VirtualClock(), stop_signal or StopSignal()
    replies: deque[tuple[float, ChunkReply]] = deque()
    for i in range(steps):
        loop.clock.wait(now := i * period)
        stop_signal.poll()
        if stop_signal.reason:
            loop.controller.stop(now, stop_signal.reason)
        if request := loop.sense():
            replies.append((now + latency - period * 1e-6, reply_to(source, request)))
        while replies and replies[0][0] <= now:
            loop.controller.receive(now, replies.popleft()[1])
        loop.drive()
        if loop.finished:
            return i + 1
    stop_signal.finish()
    return steps


def _text(error: Exception) -> str:
    return one_line(error) if isinstance(error, GpcError) else type_and_text(error)
