"""One flight of the control loop on the real clock, for the tests of its faults."""

import threading
import time

from gpc.bridge.blending import RecedingHorizon
from gpc.bridge.chunk_source import SourceThread
from gpc.bridge.controller import ChunkController, ChunkSpec, Watchdog
from gpc.bridge.loop import LIVE, ControlLoop
from gpc.bridge.realtime import LoopTimes, run_realtime
from gpc.bridge.robot import map_features
from gpc.bridge.safety import SafetyFilter, SafetyLimits
from gpc.bridge.stop import StopSignal

PERIOD = 0.02
SLACK = 0.12  # for two busy cores
WATCHDOG = Watchdog(deadline=0.2, max_age=0.4, observation_deadline=0.15, frozen_after=0.3, stop_after=0.25)


class Kept:
    def __init__(self):
        self.periods, self.events = [], []

    def record(self, record):
        self.periods.append(record)

    def event(self, event):
        self.events.append(event)

    def first(self, kind):
        return next(event for event in self.events if event.kind == kind)


def flown(
    arm,
    source,
    seconds=3.0,
    mode=LIVE,
    watchdog=WATCHDOG,
    stop_signal=None,
    meanwhile=None,
    mapped=None,
    limits=None,
    **clock,
):
    """Fly; `meanwhile(arm)` runs in another thread. Returns the loop, the record, the timing and why it ended."""
    feature_map = map_features(arm, source.observations, source.actions.dim, mapped)
    limits = limits or SafetyLimits(position=[-1, 1], velocity=1.0, actions="absolute").resolve(source.actions, PERIOD)
    safety_filter = SafetyFilter(limits, feature_map.actions)
    expected = ChunkSpec(source.actions.start, source.actions.horizon, source.actions.dim, 2)
    kept, stop_signal = Kept(), stop_signal or StopSignal()
    loop = ControlLoop(
        arm, feature_map, ChunkController(expected, RecedingHorizon(8), safety_filter, watchdog), mode, kept
    )
    thread = SourceThread(source)
    beside = threading.Thread(target=meanwhile, args=(arm,)) if meanwhile else None
    with stop_signal.listening():
        if beside:
            beside.start()
        try:
            timing = run_realtime(loop, thread, LoopTimes(PERIOD, seconds, **clock), stop_signal)
        finally:
            thread.close()
            if beside:
                beside.join()
    return loop, kept, timing, stop_signal


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")
