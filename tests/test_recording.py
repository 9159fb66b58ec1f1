import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from gpc.bridge.loop import Tick
from gpc.bridge.pilot import HOLD, OK, Event
from gpc.bridge.recording import Recorder
from gpc.demonstrations import read, write_lerobot
from gpc.errors import InputError

NAN = np.full(2, np.nan)


def tick(i, mode=OK, asked=None, sent=None, frame=True):
    seen = {"state": np.full(3, float(i)), "front": np.full((4, 4, 3), int(i) % 256, np.uint8)} if frame else None
    asked = np.full(2, i / 100) if asked is None else asked
    return Tick(0.1 * i, mode, asked, asked / 2 if sent is None else sent, int(i) // 8, 0.05, 0.001, seen)


def test_an_episode_is_read_again_as_demonstrations_with_what_was_really_sent(tmp_path):
    recorder = Recorder(tmp_path / "run", {"mode": "live"})
    recorder.tick(tick(0, HOLD, asked=NAN, sent=NAN))  # nothing was sent yet: no demonstration
    for i in range(1, 30):
        recorder.tick(tick(i, frame=i % 2 == 1))
    recorder.tick(tick(31, sent=NAN))
    recorder.event(Event(3.2, "stopped", "the time is over"))
    recorder.close()
    recorder.finish({"why": "the time is over"})
    demonstrations = read(tmp_path / "run/episode.zarr")
    steps = [*range(1, 30, 2), 31]
    np.testing.assert_array_equal(demonstrations.observations["state"][:, 0], steps)
    assert demonstrations.observations["front"].shape == (16, 4, 4, 3)
    np.testing.assert_allclose(demonstrations.actions[:, 0], [*(i / 200 for i in steps[:-1]), 0.31])
    stream = zarr.open_group(tmp_path / "run/episode.zarr", mode="r")["stream"]
    assert stream["asked"].shape == (31, 2)
    assert stream["mode"][:].tolist() == [1] + [0] * 30
    np.testing.assert_allclose(stream["at"][1:30], 0.1 * np.arange(1, 30))
    event = json.loads((tmp_path / "run/events.jsonl").read_text())
    assert event == {"at": 3.2, "kind": "stopped", "text": "the time is over"}
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"why": "the time is over", "steps": 16}


def test_a_folder_with_an_episode_is_not_written_over(tmp_path):
    Recorder(tmp_path, {}).close()
    with pytest.raises(InputError, match="holds an episode already"):
        Recorder(tmp_path, {})


WRITE = """
import sys
import time
from pathlib import Path
from gpc.bridge import recording
from test_recording import tick
recording.EVERY = 0.3
recorder = recording.Recorder(Path(sys.argv[1]), {})
for i in range(100000):
    recorder.tick(tick(i))
    if i % 50 == 0:
        print(i, flush=True)
        while recorder._queue.qsize() > 20:
            time.sleep(0.001)
"""


@pytest.mark.parametrize("after", [100, 200])
def test_killed_anywhere_what_was_recorded_stays_readable(tmp_path, after):
    command = [sys.executable, "-P", "-c", WRITE, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent)
    while int(process.stdout.readline()) < after:
        pass
    time.sleep(0.007)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    demonstrations = read(tmp_path / "run/episode.zarr")
    count = len(demonstrations.actions)
    assert count > after - 80
    np.testing.assert_array_equal(demonstrations.observations["state"][:, 0], np.arange(count))
    np.testing.assert_array_equal(demonstrations.observations["front"][:, 0, 0, 0], np.arange(count) % 256)
    np.testing.assert_allclose(demonstrations.actions[:, 0], np.arange(count) / 200)


def test_a_disk_that_fails_ends_the_record_not_the_flight(tmp_path):
    recorder = Recorder(tmp_path / "run", {})
    recorder.tick(tick(0)._replace(frame={"state": np.array([object()])}))
    recorder.event(Event(0.0, OK, ""))
    recorder.tick(tick(20))
    recorder.close()
    assert recorder.failure
    recorder.finish({})
    assert "not_recorded" in json.loads((tmp_path / "run/summary.json").read_text())


def test_episodes_are_added_to_a_dataset_of_lerobot_and_read_back(tmp_path):
    pytest.importorskip("lerobot")
    for run in ("one", "two"):
        recorder = Recorder(tmp_path / run, {})
        for i in range(5):
            recorder.tick(tick(i))
        recorder.close()
        write_lerobot(tmp_path / "set", read(tmp_path / run / "episode.zarr"), 10, "push")
    found = read(tmp_path / "set")
    assert found.episode_ends.tolist() == [5, 10]
    np.testing.assert_allclose(found.actions[:, 0], np.tile(np.arange(5) / 200, 2), atol=1e-7)
    np.testing.assert_array_equal(found.observations["observation.state"][:, 0], np.tile(np.arange(5), 2))
    np.testing.assert_array_equal(found.observations["observation.front"][:, 0, 0, 0], np.tile(np.arange(5), 2))


def test_the_view_is_kept_for_rerun(tmp_path):
    pytest.importorskip("rerun")
    recorder = Recorder(tmp_path / "run", {}, view=str(tmp_path / "live.rrd"))
    for i in range(3):
        recorder.tick(tick(i))
    recorder.event(Event(1.0, HOLD, "why"))
    recorder.close()
    assert recorder.failure == ""
    assert (tmp_path / "live.rrd").stat().st_size > 1000
