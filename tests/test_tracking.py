"""`log=`: what W&B, Trackio and TensorBoard receive, read back from their own files; none of them can end a run."""

import json
import shutil
import time

import pytest
from made_up import write_search

import gpc
from gpc.commands.checks import LOGS
from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.results import tracking
from gpc.results.report import write_report
from gpc.results.run_folder import RunFolder, read_rows
from gpc.results.tracking import BACKENDS, RunLog

SEARCHED = {(1.0, 0.0): {0: 1, 1: 0}, (0.5, 0.5): {0: 1, 1: 1}, (0.0, 1.0): {0: 0, 1: 0}}
REPORTED = {weights: {9: weights != (0.0, 1.0)} for weights in SEARCHED}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished search of 9 episodes, with its figures."""
    path = write_search(tmp_path_factory.mktemp("finished") / "two", ["a", "b"], SEARCHED, REPORTED, (0.5, 0.5))
    write_report(path)
    return path


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, for one test."""
    return shutil.copytree(finished, tmp_path / "runs/two")


def opened(path):
    manifest = json.loads((path / "manifest.json").read_text())
    return RunFolder(path, manifest["config"], 4)


def follow(path, name):
    """Log a run as its command does: what is on disk, then the results."""
    with RunLog(name) as log:
        with opened(path) as folder:
            log.start(folder)
        log.results(path)


def in_parts(path, name, at=4, pause=0.0):
    """Log the first `at` rows, as of a run that was killed, then the whole run."""
    rows = (path / "episodes.jsonl").read_text()
    (path / "episodes.jsonl").write_text("".join(rows.splitlines(keepends=True)[:at]))
    with RunLog(name) as log, opened(path) as folder:
        log.start(folder)
    (path / "episodes.jsonl").write_text(rows)
    time.sleep(pause)
    follow(path, name)


class Recorded:
    """A backend that keeps what it receives."""

    fails_at = None

    def __init__(self, subject):
        self.subject, self.sent, self.ended = subject, [], []

    def numbers(self, values, episode):
        if episode == self.fails_at:
            raise ConnectionError("no route\nto host")
        self.sent.append((episode, values))

    def results(self, *found):
        self.ended.append(found)

    def close(self):
        self.ended.append("closed")


@pytest.fixture
def recorded(monkeypatch):
    """The runs that a backend in place of W&B receives."""
    runs = []

    def make(subject):
        runs.append(Recorded(subject))
        return runs[-1]

    monkeypatch.setattr(tracking, "BACKENDS", {"wandb": make})
    return runs


def test_each_episode_is_a_step_of_curves_by_phase_and_weights(run, recorded):
    follow(run, "wandb")
    ((verdict, table, figures), end) = recorded[0].ended
    assert [episode for episode, _ in recorded[0].sent] == list(range(1, 10))
    first, last = recorded[0].sent[0][1], recorded[0].sent[5][1]
    assert first == {
        "search/pc_success": 100, "search/avg_max_reward": 0.75, "search/1_0/pc_success": 100, "search/1_0/avg_max_reward": 0.75,
    }  # fmt: skip
    assert last["search/pc_success"] == 50
    assert last["search/0_1/pc_success"] == 0
    assert verdict == json.loads((run / "summary.json").read_text())["verdict"]
    assert ("winner [0.5, 0.5]", "report", 1, 100.0) in [tuple(row[:4]) for row in table]
    assert {file.name for file in figures} >= {"curve.png"}
    assert end == "closed"


def test_a_resumed_run_is_the_same_one_and_repeats_no_episode(run, recorded):
    in_parts(run, "wandb")
    before, after = recorded
    assert before.subject.id == after.subject.id
    assert [episode for episode, _ in before.sent + after.sent] == list(range(1, 10))
    assert after.sent[0][1]["search/pc_success"] == pytest.approx(60)  # of all five


def test_a_folder_chooses_no_id(run, recorded, capsys):
    for token in ("0" * 32, "f" * 32):
        (run / "log.json").write_text(json.dumps({"token": token, "sent": {}}))
        follow(run, "wandb")
    assert len({made.subject.id for made in recorded} | {"0" * 16, "f" * 16}) == 4
    (run / "log.json").write_text(json.dumps({"token": "../../victim", "sent": {}}))
    follow(run, "wandb")
    assert len(recorded) == 2
    assert "log=wandb has failed" in capsys.readouterr().err


def test_a_backend_that_fails_costs_one_line_and_no_episode(tiny, tmp_path, recorded, monkeypatch, capsys):
    monkeypatch.setattr(Recorded, "fails_at", 2)
    arguments = [
        "evaluate",
        f"policies=[{tiny[1]}]",
        "env=pusht",
        "env.max_steps=8",
        "video=0",
        "episodes=3",
        "log=wandb",
    ]
    assert main([*arguments, f"run_dir={tmp_path / 'run'}"]) == 0
    assert len(read_rows(tmp_path / "run/episodes.jsonl")) == 3
    assert (tmp_path / "run/report.html").is_file()
    lines = [line for line in capsys.readouterr().err.splitlines() if "log=wandb" in line]
    assert lines == ["gpc: log=wandb has failed, the run continues without it: no route to host"]


def test_sides_of_a_comparison_go_by_name(tiny, tmp_path, recorded):
    policies = f"policies=[{','.join(tiny)}]"
    arguments = ["compare", policies, "env=pusht", "env.max_steps=8", "video=0", "episodes=2", "log=wandb"]
    assert main([*arguments, f"run_dir={tmp_path / 'run'}"]) == 0
    assert len(recorded) == 1
    curves = {name for _, values in recorded[0].sent for name in values}
    assert {"compare/tiny-noise/pc_success", "compare/tiny-flow/pc_success"} < curves


def test_a_name_that_is_wrong_or_a_package_that_is_missing_is_one_line_before_any_work(monkeypatch, capsys):
    assert set(LOGS) == set(BACKENDS)
    assert main(["evaluate", "policies=[pusht-flow]", "log=wanbd"]) == 2
    assert "log=wanbd is unknown; did you mean 'wandb'?" in capsys.readouterr().err
    monkeypatch.setattr("gpc.commands.checks.find_spec", lambda name: None)
    assert main(["evaluate", "policies=[pusht-flow]", "log=trackio"]) == 2
    told = capsys.readouterr().err
    assert "log=trackio needs a package that is missing" in told
    assert "[trackio]" in told


CURVE = [(1, 100), (2, 50), (3, 67), (4, 75), (5, 60), (6, 50)]  # (episode, success so far in %) of the search


def test_tensorboard_shows_a_resumed_run_as_one(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    in_parts(run, "tensorboard")
    events = accumulator.EventAccumulator(str(run))
    events.Reload()
    curve = events.Scalars("search/pc_success")
    assert [(point.step, round(point.value)) for point in curve] == CURVE
    assert [point.step for point in events.Scalars("report/0.5_0.5/pc_success")] == [8]
    assert {"curve"} <= set(events.Tags()["images"])
    (table,) = events.Tensors("table/text_summary")
    assert b"winner [0.5, 0.5] | report | 1 | 100.0" in table.tensor_proto.string_val[0]
    assert len(list(run.glob("events.out.tfevents.*"))) == 2


def test_wandb_offline_keeps_both_parts_under_one_id(run, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    in_parts(run, "wandb", pause=1.1)  # its folders are named by the second
    history, ids, summary = [], set(), {}
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        ids.add(file.stem)
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record.FromString(data)
            history += [
                {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            ]
            summary |= {item.key: json.loads(item.value_json) for item in record.summary.update}
    curve = [(row["episode"], row["search/pc_success"]) for row in history if "search/pc_success" in row]
    assert [(episode, round(value)) for episode, value in curve] == CURVE
    assert len(ids) == 1
    assert not (run / "wandb").exists()


def test_wandb_reads_no_settings_of_a_run_folder(run, monkeypatch, capsys):
    pytest.importorskip("wandb")
    (run / "wandb").mkdir()
    (run / "wandb/settings").write_text("[default]\nbase_url = https://elsewhere.example\n")
    monkeypatch.chdir(run)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    follow(run, "wandb")
    assert "wandb would read settings of the run folder" in capsys.readouterr().err
    assert [file.name for file in (run / "wandb").iterdir()] == ["settings"]


def test_trackio_keeps_a_resumed_run_as_one(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    in_parts(run, "trackio")
    (name,) = SQLiteStorage.get_runs("gpc")
    rows = SQLiteStorage.get_logs("gpc", name)
    curve = {row["step"]: round(row["search/pc_success"]) for row in rows if "search/pc_success" in row}
    assert curve == {1: 100, 2: 50, 3: 67, 4: 75, 5: 60, 6: 50}
    assert {"table", "curve", "verdict"} <= {key for row in rows for key in row}


def test_in_python_a_log_needs_a_run_folder():
    with pytest.raises(InputError, match="run_dir"):
        gpc.evaluate("pusht-flow", episodes=1, log="tensorboard")
