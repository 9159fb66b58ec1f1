"""`gpc deploy` as a process that is stopped (SIGSTOP) and goes on, as it is with a suspended machine."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr

from gpc.bridge.controller import HOLD, MODES, OK

pytest.importorskip("lerobot")
PAUSE, ALLOWED = 1.5, 0.6


def test_after_each_pause_of_the_process_the_robot_holds_until_there_is_a_fresh_chunk(tmp_path, tiny):
    keys = [
        "robot=simulated",
        "fps=20",
        "safety.actions=absolute",
        "mode=live",
        "stitch.n_action_steps=12",
        "seconds=9",
    ]
    watchdog = {"deadline": 5, "max_age": 5, "observation_deadline": ALLOWED, "stop_after": 60}
    keys += [f"watchdog.{name}={value}" for name, value in watchdog.items()]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gpc.commands.cli", "deploy", *keys, f"policies=[{tiny[1]}]", f"run_dir={tmp_path}/run"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert any("ok: " in line for line in iter(process.stdout.readline, ""))
        for moment in (0.5, 0.53, 0.61):
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
        flown = i + np.flatnonzero(mode[i:] == MODES.index(OK))[0]
        assert chunk[flown] > chunk[:i].max()
        assert age[flown] < at[flown] - at[i] + 0.2  # planned from what was seen after the pause
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert sum(event["kind"] == HOLD and "no observation for" in event["text"] for event in events) == 3
