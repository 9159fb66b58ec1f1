import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from running import until

from gpc.bridge import recording
from gpc.bridge.controller import HOLD, OK, Event
from gpc.bridge.loop import PeriodRecord
from gpc.bridge.page import _stream
from gpc.bridge.recording import Recorder
from gpc.commands.cli import main
from gpc.demonstrations import read, write_lerobot
from gpc.errors import InputError
from gpc.inert import Console
from gpc.results.charts import action_chart

WITH_TESTS = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

NAN = np.full(2, np.nan)


def record(i, mode=OK, command=None, sent=None, frame=True):
    seen = {"state": np.full(3, float(i)), "front": np.full((4, 4, 3), int(i) % 256, np.uint8)} if frame else None
    command = np.full(2, i / 100) if command is None else command
    return PeriodRecord(0.1 * i, mode, command, command / 2 if sent is None else sent, int(i) // 8, 0.05, 0.001, seen)


def test_an_episode_is_read_again_as_demonstrations_with_what_was_really_sent(tmp_path):
    recorder = Recorder(tmp_path / "run", {"mode": "live"})
    recorder.record(record(0, HOLD, command=NAN, sent=NAN))  # nothing was sent yet: no demonstration
    for i in range(1, 30):
        recorder.record(record(i, frame=i % 2 == 1))
    recorder.record(record(31, sent=NAN))
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


def test_the_page_of_an_episode_has_actions_limits_holds_pictures_and_events(tmp_path, capsys, monkeypatch):
    run, name = tmp_path / "run", "<b>joint</b>"
    limits = {"low": [-1.0, None], "high": [1.0, None]}
    recorder = Recorder(run, {"robot": {"type": "arm"}, "features": {"actions": [name, "gripper"]}, "limits": limits})
    for i in range(30):
        recorder.record(record(i, HOLD if 10 <= i < 15 else OK))
    recorder.event(Event(3.2, "stopped", "<script>alert(1)</script>"))
    recorder.close()
    recorder.finish({"why": "the time is over", "mode": "live", "chunk_ms": {"p50": 3.0}})
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Ended after 2.9 s: the time is over. 16.7 % of the periods" in page
    assert page.count("data-item=") == 3  # two dimensions and the latencies
    assert page.count('src="data:image/png;base64') == 6
    assert "<script>alert(1)" not in page
    assert name not in page
    assert "&lt;script&gt;alert(1)" in page
    stream = _stream(run)
    drawn = action_chart(name, stream["at"], {"sent": stream["sent"][:, 0]}, [-1.0, None], stream["mode"] == 1)
    strip, line, limit = (drawn.renderers[i].data_source.data for i in range(3))
    assert (strip["x0"].tolist(), strip["x1"].tolist()) == ([pytest.approx(1.0)], [pytest.approx(1.5)])
    assert len(line["x"]) == 30
    assert limit["y"] == [-1.0]
    shutil.copytree(run, tmp_path / "again")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "run", "again"]) == 0
    study = Path("study.html").read_text()
    assert "A study of 2 runs" in study
    assert study.count("Ended after 2.9 s: the time is over.") == 2
    shutil.rmtree(run / "episode.zarr/stream/at")
    assert main(["report", str(run)]) == 2
    assert "holds no period" in capsys.readouterr().err


def test_a_folder_with_an_episode_is_not_written_over(tmp_path):
    Recorder(tmp_path, {}).close()
    with pytest.raises(InputError, match="holds an episode already"):
        Recorder(tmp_path, {})


WRITE = """
import sys
import time
from pathlib import Path
from gpc.bridge import recording
from test_recording import record
recording.WRITE_EVERY = 0.3
recorder = recording.Recorder(Path(sys.argv[1]), {})
for i in range(100000):
    recorder.record(record(i))
    if i % 50 == 0:
        print(i, flush=True)
        while recorder.waiting > 20 * 1200:
            time.sleep(0.001)
"""


@pytest.mark.parametrize("after", [100, 200])
def test_killed_anywhere_what_was_recorded_stays_readable(tmp_path, after):
    command = [sys.executable, "-P", "-c", WRITE, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=WITH_TESTS)
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


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(*_, **__):
    raise FULL


WAYS = {
    "an event": lambda patch, run: (run / "events.jsonl").symlink_to("/dev/full"),
    "fsync": lambda patch, run: patch.setattr(recording.os, "fsync", failing),
    "a chunk": lambda patch, run: patch.setattr(zarr.storage._local, "_put", failing),
    "rows": lambda patch, run: patch.setattr(recording._Table, "flush", failing),
    "the end of the episode": lambda patch, run: patch.setattr(recording.zarr, "open_group", failing),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_full_disk_ends_the_record_with_one_event_and_the_console_goes_on(tmp_path, monkeypatch, way):
    text = io.StringIO()
    run = tmp_path / "run"
    run.mkdir()
    if way is WAYS["an event"]:
        way(monkeypatch, run)
    recorder = Recorder(run, {}, Console(file=text))
    recorder.event(Event(0.0, OK, "a fresh chunk"))
    if way is not WAYS["an event"]:
        until(lambda: recorder.waiting == 0)
        way(monkeypatch, run)
    for i in range(40):
        recorder.record(record(i))
        time.sleep(0.001)
    recorder.event(Event(4.0, HOLD, "the plan ran out"))
    recorder.close()
    monkeypatch.undo()
    summary = recorder.finish({"why": "the time is over"})
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["not_recorded"].startswith("OSError: [Errno 28] No space left on device")
    lines = text.getvalue().splitlines()
    assert sum("unrecorded: disk: OSError: [Errno 28]" in line for line in lines) == 1
    assert "the robot runs on without it" in text.getvalue()
    assert recorder.kinds["unrecorded"] == 1
    assert sum(" ok  [" in line for line in lines) == 4  # once a second, whatever the disk does
    assert sum(line.endswith("hold: the plan ran out") for line in lines) == 1
    for line in (run / "events.jsonl").read_text().splitlines() if way is not WAYS["an event"] else ():
        json.loads(line)


LIMITED = """
import json, resource, sys
from pathlib import Path
from gpc.bridge.controller import Event
from gpc.bridge.recording import Recorder
from test_recording import record
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for limit in map(int, sys.argv[2:]):
    recorder = Recorder(Path(sys.argv[1]) / str(limit), {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for i in range(200):
        recorder.record(record(i))
        recorder.event(Event(0.1 * i, "refused", "why" * 10))
    recorder.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(json.dumps(recorder.finish({})))
"""


def test_files_that_cannot_grow_end_the_record_with_whole_lines_and_steps(tmp_path):
    limits = ("10", "100", "1000", "3000", "7000", "10000000")
    command = [sys.executable, "-P", "-c", LIMITED, str(tmp_path), *limits]
    output = subprocess.check_output(command, text=True, env=WITH_TESTS)
    for limit, summary in zip(limits, map(json.loads, output.splitlines()), strict=True):
        lines = (tmp_path / limit / "events.jsonl").read_bytes()
        assert lines[-1:] in (b"", b"\n")
        assert all(json.loads(line)["kind"] == "refused" for line in lines.splitlines())
        if limit == limits[-1]:
            assert "not_recorded" not in summary
            assert (summary["steps"], lines.count(b"\n")) == (200, 200)
        else:
            assert "File too large" in summary["not_recorded"]
        if summary["steps"]:
            demonstrations = read(tmp_path / limit / "episode.zarr")
            np.testing.assert_array_equal(demonstrations.observations["state"][:, 0], np.arange(summary["steps"]))


def test_a_summary_that_cannot_be_written_is_no_traceback(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path / "run", {})
    recorder.close()
    monkeypatch.setattr(recording, "write_atomically", failing)
    assert recorder.finish({"why": "SIGINT"})["not_recorded"].startswith("summary.json: [Errno 28]")


def test_a_disk_that_hangs_costs_a_bounded_queue_and_what_is_dropped_is_counted(tmp_path, monkeypatch):
    text, release = io.StringIO(), threading.Event()
    recorder = Recorder(tmp_path / "run", {}, Console(file=text), buffer=100_000)
    flush = recording._Table.flush
    monkeypatch.setattr(recording._Table, "flush", lambda table: (release.wait(20), flush(table))[1])
    picture = np.zeros((100, 100, 3), np.uint8)
    began = time.monotonic()
    for i in range(300):
        recorder.record(record(i)._replace(frame={"state": np.full(3, float(i)), "front": picture}))
        assert recorder.waiting <= 100_000
    assert time.monotonic() - began < 1.0
    recorder.event(Event(30.0, HOLD, "the plan ran out"))  # an event has room
    until(lambda: text.getvalue().endswith("hold: the plan ran out\n"))
    release.set()
    recorder.close()
    summary = recorder.finish({})
    assert summary["dropped"]["disk"] == 300 - summary["steps"]
    assert f"{300 - summary['steps']} periods and events dropped" in summary["not_recorded"]
    assert summary["steps"] >= 3
    assert text.getvalue().count("unrecorded: disk: items come faster than they are written") == 1
    assert (tmp_path / "run/events.jsonl").read_text().count("the plan ran out") == 1


def test_a_disk_that_hangs_for_ever_is_left_behind(tmp_path, monkeypatch):
    release = threading.Event()
    recorder = Recorder(tmp_path / "run", {})
    monkeypatch.setattr(recording._Table, "flush", lambda table: release.wait(20))
    recorder.record(record(0))
    recorder.close(timeout=0.1)
    assert "was not written within 0.1 s" in recorder.finish({})["not_recorded"]
    release.set()


def test_a_console_that_takes_nothing_costs_its_own_lines_only(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "LINES", 20_000)
    monkeypatch.setattr(recording, "RESERVE", 20_000)
    reader, writer = os.pipe()
    recorder = Recorder(tmp_path / "run", {}, Console(file=os.fdopen(writer, "w")))
    printing = recorder._writers["console"]
    began = time.monotonic()
    for i in range(200):
        recorder.record(record(i / 10))
        recorder.event(Event(i / 100, "refused", "w" * 1500))
        assert printing.waiting <= 40_000
    assert time.monotonic() - began < 1.0
    recorder.close()
    summary = recorder.finish({})
    assert "not_recorded" not in summary
    assert summary["steps"] == 200
    assert summary["dropped"]["console"] > 100
    events = (tmp_path / "run/events.jsonl").read_text()
    assert (events.count("refused"), events.count("unshown")) == (200, 1)
    os.close(reader)


def test_a_console_whose_reader_is_gone_is_no_end(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    recorder = Recorder(tmp_path / "run", {}, Console(file=os.fdopen(writer, "w")))
    for i in range(30):
        recorder.record(record(i))
    until(lambda: recorder.kinds["unshown"])
    recorder.close()
    assert recorder.finish({})["steps"] == 30
    assert "the reader of the output is gone" in (tmp_path / "run/events.jsonl").read_text()


def test_a_view_that_fails_is_reported_and_the_record_goes_on(tmp_path, monkeypatch):
    class Broken:
        def init(self, *_, **__): ...
        def save(self, *_): ...
        def set_time(self, *_, **__):
            raise RuntimeError("no viewer")

    monkeypatch.setattr(recording, "import_module", lambda name: Broken())
    text = io.StringIO()
    recorder = Recorder(tmp_path / "run", {}, Console(file=text), view="live.rrd")
    for i in range(30):
        recorder.record(record(i))
    recorder.close()
    summary = recorder.finish({})
    assert (summary["steps"], summary["dropped"]) == (30, {"view": 29})
    assert "unshown: view: RuntimeError: no viewer" in text.getvalue()


def test_episodes_are_added_to_a_dataset_of_lerobot_and_read_back(tmp_path):
    pytest.importorskip("lerobot")
    for run in ("one", "two"):
        recorder = Recorder(tmp_path / run, {})
        for i in range(5):
            recorder.record(record(i))
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
        recorder.record(record(i))
    recorder.event(Event(1.0, HOLD, "why"))
    recorder.close()
    assert "dropped" not in recorder.finish({})
    assert (tmp_path / "live.rrd").stat().st_size > 1000
