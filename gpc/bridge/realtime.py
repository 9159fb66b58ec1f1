"""Real time: the robot in one thread, the policy in another, and the main thread, which watches both.

All calls of the robot, from `connect` to `disconnect`, are made by its thread: LeRobot's robots may not be shared. If that
thread hangs in a driver, nothing is sent (the arm's own controller keeps its last target), the main thread declares the
stop, and no action follows a call that returns later.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import Thread
from typing import Any

import numpy as np

from gpc.bridge.chunk_source import SourceThread
from gpc.bridge.controller import HOLD, STOPPED, ChunkRequest, Event
from gpc.bridge.loop import ControlLoop
from gpc.bridge.robot import connected, disconnect, driver_failure
from gpc.bridge.stop import StopSignal
from gpc.errors import GpcError, RunError, type_and_text
from gpc.schema import Seconds, check_fields
from gpc.types import Frame

POLL = 0.01  # seconds between two checks by the main thread
SWITCH = 0.0005  # seconds after which a thread must let another run; Python's 0.005 is a period of 200 Hz


@dataclass(frozen=True)
class LoopTimes:
    """Times of an episode, in seconds.

    Attributes:
        period: between two actions.
        seconds: length of the episode; None: until it is stopped.
        connect_within: limit for `connect`.
        warmup_within: limit for the first chunk.
        disconnect_within: time after a stop, or after the robot's last call, until its driver is given up.
    """

    period: Seconds
    seconds: Seconds | None = None
    connect_within: Seconds = 30.0
    warmup_within: Seconds = 120.0
    disconnect_within: Seconds = 5.0

    def __post_init__(self) -> None:
        check_fields(self, "")


@dataclass
class LoopTiming:
    """How late each period began, in seconds, and how many deadlines were missed."""

    late: list[float] = field(default_factory=list)
    missed: int = 0

    def summary(self) -> dict[str, Any]:
        """Return numbers of periods and missed deadlines, and the jitter in milliseconds."""
        late = 1000 * np.array(self.late or [0.0])
        p50, p99 = np.percentile(late, [50, 99])
        jitter = {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(late.max()), 3)}
        return {"periods": len(self.late), "missed_deadlines": self.missed, "jitter_ms": jitter}


class RobotThread(Thread):
    """Connects the robot, runs the loop after `start_control`, and disconnects."""

    def __init__(self, loop: ControlLoop, source: SourceThread, times: LoopTimes, stop_signal: StopSignal) -> None:
        super().__init__(name="gpc-robot", daemon=True)
        self.loop, self.source, self.times, self.stop_signal = loop, source, times, stop_signal
        self.timing = LoopTiming()
        self.connected, self.control = Flag(), Flag()
        self.first_frame: Frame = {}  # read when the robot was connected
        self.heartbeat = loop.clock.now()  # time at which the thread last ran
        self.failure: GpcError | None = None

    def run(self) -> None:
        """Run the episode; what a driver raises is kept in `failure`."""
        with suppress(OSError):  # before all others if the system permits it (Linux, CAP_SYS_NICE)
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        try:
            with connected(self.loop.robot):
                self.first_frame, _ = self.loop.read()
                self.connected.set()
                self.control.wait()
                if not self.stop_signal.reason:
                    self._control()
        except BaseException as error:  # KeyboardInterrupt of a driver, too
            self.failure = error if isinstance(error, GpcError) else driver_failure(error)
        finally:
            self.connected.set()

    def start_control(self) -> None:
        """Let the loop run if there is no reason to stop, else disconnect."""
        self.heartbeat = self.loop.clock.now()
        self.control.set()

    def _control(self) -> None:
        clock, n, controller = self.loop.clock, 0, self.loop.controller
        start = clock.now()
        while not self.loop.finished and not self.loop.sending_disabled.is_set():
            clock.wait(start + n * self.times.period)
            self.heartbeat = now = clock.now()
            late = now - start - n * self.times.period
            missed = int(late / self.times.period)  # periods that are skipped
            self.timing.late.append(late)
            self.timing.missed += missed
            n += 1 + missed
            if self.times.seconds is not None and now - start >= self.times.seconds:
                self.stop_signal.finish()
            if self.stop_signal.reason:
                controller.stop(now, self.stop_signal.reason)
            if request := self.loop.sense():
                self.source.request(request)
            self.heartbeat = now = clock.now()
            for reply in self.source.received():
                controller.receive(now, reply)
            self.loop.drive(late)


def run_realtime(loop: ControlLoop, source: SourceThread, times: LoopTimes, stop_signal: StopSignal) -> LoopTiming:
    """Run one episode in real time.

    Returns when the robot is disconnected, or its driver is given up. Why the controller stopped is in `loop.controller.reason`.

    Raises:
        InputError: If the robot is not ready.
        RunError: If the robot fails or hangs.
    """
    thread = RobotThread(loop, source, times, stop_signal)
    with _short_switches():
        thread.start()
        try:
            _prepare(thread, source)
            thread.start_control()
            _watch(thread)
        except BaseException as error:  # without its watch the robot must not go on
            stop_signal.request(f"the watch of the robot failed: {type_and_text(error)}")
            thread.start_control()
            thread.join(times.disconnect_within)
            raise
        finally:
            _give_up(thread)
    loop.report()
    if thread.failure is not None:
        raise thread.failure
    return thread.timing


@contextmanager
def _short_switches() -> Iterator[None]:
    """Let Python's threads take turns more often for the body of `with`."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _prepare(thread: RobotThread, source: SourceThread) -> None:
    """Wait for the robot, then sample one chunk and drop it, before anything moves."""
    times, stop_signal = thread.times, thread.stop_signal
    if not _wait_for(thread.connected, times.connect_within, stop_signal):
        stop_signal.request(f"the robot was not connected within {times.connect_within:g} s")
    if thread.failure or stop_signal.reason:
        return
    steps = source.source.observations.n_obs_steps
    observation = {key: np.stack([value] * steps) for key, value in thread.first_frame.items()}
    start = time.monotonic()
    source.request(ChunkRequest(0, 0, start, observation, None))
    while source.replies.empty() and not stop_signal.reason:
        time.sleep(POLL)
        stop_signal.poll()
        if time.monotonic() - start > times.warmup_within:
            stop_signal.request(f"the policy gave no chunk within {times.warmup_within:g} s")
    for reply in source.received():
        if reply.chunk is None:
            stop_signal.request(f"the policy gave no chunk: {reply.reason}")
    source.durations.clear()


def _wait_for(flag: Flag, seconds: float, stop_signal: StopSignal) -> bool:
    start = time.monotonic()
    while not flag.wait(POLL) and not stop_signal.reason and time.monotonic() - start < seconds:
        stop_signal.poll()
    return flag.is_set()


def _watch(thread: RobotThread) -> None:
    """Return when the robot's thread has ended, or must be given up."""
    loop, watchdog = thread.loop, thread.loop.controller.watchdog
    silent_before, stopped_at, now = False, None, loop.clock.now()
    while thread.is_alive():
        thread.join(POLL)
        thread.stop_signal.poll()
        previous, now = now, loop.clock.now()
        paused = now - previous - POLL
        if paused > watchdog.observation_deadline + 5 * POLL:  # the process was paused, not the robot
            thread.heartbeat = min(thread.heartbeat + paused, now)  # its silence before the pause still counts
        silence = now - thread.heartbeat - thread.times.period
        silent = silence > watchdog.observation_deadline
        if silent and not silent_before:
            loop.sink.event(Event(now, HOLD, f"the robot has not answered for {silence:.3f} s; nothing is sent"))
        silent_before = silent
        if silence > watchdog.observation_deadline + watchdog.stop_after:
            thread.stop_signal.request(f"the robot has not answered for {silence:.3f} s")
        if thread.stop_signal.reason:
            stopped_at = stopped_at or now
            if silent:
                loop.sending_disabled.set()
            if now - max(stopped_at, thread.heartbeat) > thread.times.disconnect_within:  # braking takes its time
                return


def _give_up(thread: RobotThread) -> None:
    """Disable sending and disconnect the robot from here, if its thread still runs."""
    if not thread.is_alive():
        return
    thread.loop.sending_disabled.set()
    thread.loop.sink.event(Event(thread.loop.clock.now(), STOPPED, thread.stop_signal.reason))
    problems: list[str] = []
    opened = thread.connected.is_set()
    closing = Thread(target=lambda: problems.append(disconnect(thread.loop.robot, opened)), daemon=True)
    closing.start()
    closing.join(1.0)
    problem = problems[0] if problems else "disconnect hangs, too"
    reason = f"{thread.stop_signal.reason}; its driver was given up after {thread.times.disconnect_within:g} s"
    thread.failure = RunError(f"{reason}; {problem}: cut its power" if problem else reason)
