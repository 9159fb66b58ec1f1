"""The control loop in a process that is stopped (SIGSTOP) and continues, as it is with a suspended machine."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import zarr

from gpc.bridge.controller import HOLD, MODES, OK

PAUSE, ALLOWED = 0.8, 0.4
PROGRAM = f"""
import sys; sys.path[:] = {sys.path}
from toy_robots import Arm, Line
from gpc.bridge.blending import RecedingHorizon
from gpc.bridge.controller import Watchdog
from gpc.bridge.run import EpisodeSettings, deploy
from gpc.bridge.safety import SafetyLimits
from gpc.inert import Console
result = deploy(
    Line(), Arm(), EpisodeSettings(fps=20, mode="live", seconds=5), sys.argv[1],
    blender=RecedingHorizon(12), safety=SafetyLimits(actions="absolute"), console=Console(),
    watchdog=Watchdog(deadline=5, max_age=5, observation_deadline={ALLOWED}, stop_after=60),
)
sys.exit(result.code)
"""


def test_after_each_pause_of_the_process_the_robot_holds_until_there_is_a_fresh_chunk(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        for moment in (0.3, 0.33, 0.41):
            assert any("ok: " in line for line in iter(process.stdout.readline, ""))
            time.sleep(moment)
            process.send_signal(signal.SIGSTOP)
            time.sleep(PAUSE)
            process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output  # the pause of the process is not taken for a robot that hangs
    stream = zarr.open_group(tmp_path / "run/episode.zarr", mode="r")["stream"]
    at, mode, chunk, age = (np.asarray(stream[name]) for name in ("at", "mode", "chunk", "age"))
    resumed = np.flatnonzero(np.diff(at) > PAUSE - 0.2) + 1
    assert len(resumed) == 3
    for i in resumed:
        executed = i + np.flatnonzero(mode[i:] == MODES.index(OK))[0]
        assert chunk[executed] > chunk[:i].max()
        assert age[executed] < at[executed] - at[i] + 0.2  # sampled for an observation after the pause
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert sum(event["kind"] == HOLD and "no observation for" in event["text"] for event in events) == 3
