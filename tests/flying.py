"""One flight of the control loop on the real clock, for the tests of its faults."""

import threading
import time

from gpc.bridge.blending import RecedingHorizon
from gpc.bridge.chunk_source import PlannerThread
from gpc.bridge.controller import Expected, Patience, Pilot
from gpc.bridge.loop import LIVE, Loop
from gpc.bridge.realtime import Clock, fly
from gpc.bridge.robot import wire
from gpc.bridge.safety import Gate, limits_from
from gpc.bridge.stop import Operator

PERIOD = 0.02
SLACK = 0.12  # for two busy cores
PATIENCE = Patience(deadline=0.2, max_age=0.4, observation_deadline=0.15, frozen_after=0.3, stop_after=0.25)


class Kept:
    def __init__(self):
        self.ticks, self.events = [], []

    def tick(self, tick):
        self.ticks.append(tick)

    def event(self, event):
        self.events.append(event)

    def first(self, kind):
        return next(event for event in self.events if event.kind == kind)


def flown(
    arm,
    planner,
    seconds=3.0,
    mode=LIVE,
    patience=PATIENCE,
    operator=None,
    meanwhile=None,
    mapped=None,
    limits=None,
    **clock,
):
    """Fly; `meanwhile(arm)` runs in another thread. Returns the loop, the record, the timing and why it ended."""
    wiring = wire(arm, planner.observations.shapes, planner.actions.dim, mapped)
    limits = limits or limits_from(planner.actions, PERIOD, position=[-1, 1], velocity=1.0, hold="last")
    gate = Gate(limits, wiring.actions)
    expected = Expected(planner.actions.start, planner.actions.horizon, planner.actions.dim, 2)
    kept, operator = Kept(), operator or Operator()
    loop = Loop(arm, wiring, Pilot(expected, RecedingHorizon(8), gate, patience), mode, kept)
    thread = PlannerThread(planner)
    beside = threading.Thread(target=meanwhile, args=(arm,)) if meanwhile else None
    with operator.listening():
        if beside:
            beside.start()
        try:
            timing = fly(loop, thread, Clock(PERIOD, seconds, **clock), operator)
        finally:
            thread.close()
            if beside:
                beside.join()
    return loop, kept, timing, operator


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")
