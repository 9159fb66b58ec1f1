"""The control loop among hostile robots, clocks and planners: whatever they do, what the robot receives keeps the limits."""

import os
from collections import Counter

from hostile_world import CHUNKS, READS, SENDS, run_episode

SENDINGS = int(os.environ.get("GPC_SOAK", 40_000))  # 1,000,000 before a release


def test_whatever_robot_clock_and_planner_do_what_is_received_keeps_the_limits(monkeypatch):
    monkeypatch.setattr(os, "sched_setscheduler", lambda *_: None, raising=False)
    count, complaints, sent, flown, seed = Counter(), Counter(), 0, 0, 0
    while sent < SENDINGS:
        flight = run_episode(seed, count)
        sent, flown, seed = sent + len(flight.robot.received), flown + len(flight.modes.flown), seed + 1
        complaints.update({f"seed {seed - 1}: {complaint}": 1 for complaint in flight.complaints()})
    print(f"{sent} sendings, {flown} of a plan, in {seed} episodes: {dict(count)}")
    assert not complaints
    assert sent >= SENDINGS
    assert 0.3 < flown / sent < 0.95
    happened = (
        {f"read {kind}" for kind in READS} | {f"send {kind}" for kind in SENDS} | {f"chunk {kind}" for kind in CHUNKS}
    )
    assert happened | {"pause"} <= set(count) | {"read gone"}
