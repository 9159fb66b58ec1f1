"""The real clock: the robot in one thread, inference in another, and the main thread, which watches both.

All calls of the robot, from `connect` to `disconnect`, are made by its thread: LeRobot's robots may not be shared. If that
thread hangs in a driver, nothing is sent (the arm's own controller keeps its last target), the main thread declares the
stop, and what the driver does later is not followed by an action.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
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
from gpc.errors import GpcError, RunError, described
from gpc.schema import Seconds, check_fields
from gpc.types import Frame

WATCH = 0.01  # seconds between two looks of the main thread


@dataclass(frozen=True)
class RealTimeSettings:
    """Periods of the loop and limits of its beginning and end, in seconds."""

    period: Seconds
    seconds: Seconds | None = None
    connect_within: Seconds = 30.0
    warmup_within: Seconds = 120.0
    disconnect_within: Seconds = 5.0

    def __post_init__(self) -> None:
        check_fields(self, "")


@dataclass
class LoopTiming:
    """How late each period began, and how many deadlines were missed altogether."""

    late: list[float] = field(default_factory=list)
    missed: int = 0

    def summary(self) -> dict[str, Any]:
        """Milliseconds."""
        late = 1000 * np.array(self.late or [0.0])
        p50, p99 = np.percentile(late, [50, 99])
        jitter = {"p50": round(float(p50), 3), "p99": round(float(p99), 3), "max": round(float(late.max()), 3)}
        return {"periods": len(self.late), "missed_deadlines": self.missed, "jitter_ms": jitter}


class RobotThread(Thread):
    """Connects, waits for `go`, flies until the pilot has stopped and the robot rests, disconnects."""

    def __init__(
        self, loop: ControlLoop, source: SourceThread, clock: RealTimeSettings, stop_signal: StopSignal
    ) -> None:
        super().__init__(name="gpc-robot", daemon=True)
        self.loop, self.source, self.clock, self.stop_signal = loop, source, clock, stop_signal
        self.timing = LoopTiming()
        self.connected, self.go = Flag(), Flag()
        self.first: Frame = {}  # what the robot saw when it was connected
        self.heartbeat = loop.clock.now()  # its last sign of life
        self.failure: GpcError | None = None

    def run(self) -> None:
        """See the class."""
        with suppress(OSError):  # before all others where the system lets us (Linux, CAP_SYS_NICE)
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        try:
            with connected(self.loop.robot):
                self.first, _ = self.loop.read()
                self.connected.set()
                self.go.wait()
                if not self.stop_signal.reason:
                    self._fly()
        except BaseException as error:  # KeyboardInterrupt of a driver, too
            self.failure = error if isinstance(error, GpcError) else driver_failure(error)
        finally:
            self.connected.set()

    def begin(self) -> None:
        """Fly if there is no reason to stop, else disconnect."""
        self.heartbeat = self.loop.clock.now()
        self.go.set()

    def _fly(self) -> None:
        clock, n, controller = self.loop.clock, 0, self.loop.controller
        begin = clock.now()
        while not self.loop.finished and not self.loop.sending_disabled.is_set():
            clock.wait(begin + n * self.clock.period)
            self.heartbeat = now = clock.now()
            late = now - begin - n * self.clock.period
            skipped = int(late / self.clock.period)  # what was missed is not made up for
            self.timing.late.append(late)
            self.timing.missed += skipped
            n += 1 + skipped
            if self.clock.seconds is not None and now - begin >= self.clock.seconds:
                self.stop_signal.finish()
            if self.stop_signal.reason:
                controller.stop(now, self.stop_signal.reason)
            if request := self.loop.sense():
                self.source.request(request)
            self.heartbeat = now = clock.now()
            for reply in self.source.received():
                controller.receive(now, reply)
            self.loop.drive(late)


def run_realtime(
    loop: ControlLoop, source: SourceThread, clock: RealTimeSettings, stop_signal: StopSignal
) -> LoopTiming:
    """Fly one episode in real time; returns when the robot is disconnected, or is given up.

    Raises InputError if the robot is not ready, RunError if it fails or hangs; why the pilot stopped is its own.
    """
    thread = RobotThread(loop, source, clock, stop_signal)
    thread.start()
    try:
        _prepare(thread, source)
        thread.begin()
        _watch(thread)
    except BaseException as error:  # without its watch the robot may not go on
        stop_signal.request(f"the watch of the robot failed: {described(error)}")
        thread.begin()
        thread.join(clock.disconnect_within)
        raise
    finally:
        _give_up(thread)
    loop.report()
    if thread.failure is not None:
        raise thread.failure
    return thread.timing


def _prepare(thread: RobotThread, source: SourceThread) -> None:
    """The robot is connected and one chunk was sampled, and thrown away, before anything moves."""
    clock, stop_signal = thread.clock, thread.stop_signal
    if not _until(thread.connected, clock.connect_within, stop_signal):
        stop_signal.request(f"the robot was not connected within {clock.connect_within:g} s")
    if thread.failure or stop_signal.reason:
        return
    steps = source.source.observations.n_obs_steps
    observation = {key: np.stack([value] * steps) for key, value in thread.first.items()}
    began = time.monotonic()
    source.request(ChunkRequest(0, 0, began, observation, None))
    while source.replies.empty() and not stop_signal.reason:
        time.sleep(WATCH)
        stop_signal.poll()
        if time.monotonic() - began > clock.warmup_within:
            stop_signal.request(f"the policy gave no chunk within {clock.warmup_within:g} s")
    for reply in source.received():
        if reply.chunk is None:
            stop_signal.request(f"the policy gave no chunk: {reply.reason}")
    source.seconds.clear()


def _until(flag: Flag, seconds: float, stop_signal: StopSignal) -> bool:
    begin = time.monotonic()
    while not flag.wait(WATCH) and not stop_signal.reason and time.monotonic() - begin < seconds:
        stop_signal.poll()
    return flag.is_set()


def _watch(thread: RobotThread) -> None:
    """Until the robot's thread ends, or must be given up."""
    loop, watchdog = thread.loop, thread.loop.controller.watchdog
    held, stopped_at, now = False, None, loop.clock.now()
    while thread.is_alive():
        thread.join(WATCH)
        thread.stop_signal.poll()
        before, now = now, loop.clock.now()
        paused = now - before - WATCH
        if paused > watchdog.observation_deadline + 5 * WATCH:  # the process was paused, not the robot
            thread.heartbeat = min(thread.heartbeat + paused, now)  # its silence before still counts
        silent = now - thread.heartbeat - thread.clock.period
        if silent > watchdog.observation_deadline and not held:
            loop.sink.event(Event(now, HOLD, f"the robot has not answered for {silent:.3f} s; nothing is sent"))
        held = silent > watchdog.observation_deadline
        if silent > watchdog.observation_deadline + watchdog.stop_after:
            thread.stop_signal.request(f"the robot has not answered for {silent:.3f} s")
        if thread.stop_signal.reason:
            stopped_at = stopped_at or now
            if held:
                loop.sending_disabled.set()
            if now - max(stopped_at, thread.heartbeat) > thread.clock.disconnect_within:  # to brake takes its time
                return


def _give_up(thread: RobotThread) -> None:
    """A thread that does not end: let nothing more be sent, and close the robot from here as the last resort."""
    if not thread.is_alive():
        return
    thread.loop.sending_disabled.set()
    thread.loop.sink.event(Event(thread.loop.clock.now(), STOPPED, thread.stop_signal.reason))
    problems: list[str] = []
    opened = thread.connected.is_set()
    last = Thread(target=lambda: problems.append(disconnect(thread.loop.robot, opened)), daemon=True)
    last.start()
    last.join(1.0)
    problem = problems[0] if problems else "disconnect hangs, too"
    reason = f"{thread.stop_signal.reason}; its driver was given up after {thread.clock.disconnect_within:g} s"
    thread.failure = RunError(f"{reason}; {problem}: cut its power" if problem else reason)
