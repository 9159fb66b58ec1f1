"""Run folders of an earlier version: they are reported, resumed and replayed in today's words."""

import json
import shutil
from pathlib import Path

import pytest

from gpc.commands.cli import main
from gpc.commands.replay import replay
from gpc.inert import Console
from gpc.results.run_folder import read_rows
from gpc.results.upgrade import TYPES, upgraded, upgraded_config

EARLIER = Path(__file__).parent / "data/earlier"
"""Manifest, rows and summary of each kind, as a version wrote them that recorded import paths; without trajectories."""

SHORT = ["env.max_steps=16", "video=0"]
STEPS = "sampler.steps=2"
BOTH, FIRST = "policies=[{0},{1}]", "policies=[{0}]"
SEARCH = ["search", BOTH, *SHORT, STEPS, "report.episodes=1"]
ONE = ["evaluate", FIRST, *SHORT, "episodes=1"]
COMMANDS = {
    "evaluate": ["evaluate", BOTH, "weights=[0.25,0.75]", *SHORT, STEPS, "episodes=2"],
    "search": [*SEARCH, "search=grid", "search.episodes=1", "search.step=0.5"],
    "tpe": [*SEARCH, "search=tpe", "search.episodes=1", "search.budget=6"],
    "compare": [
        "compare", BOTH, *SHORT, STEPS, "episodes=2", "composer=guidance",
        "steer={tiny-flow: {cost: smoothness, scale: 0.01}}",
    ],
    "best": [*ONE, STEPS, "sampler.best_of={n: 2, cost: smoothness}"],
    "langevin": [*ONE, "sampler=langevin", STEPS, "sampler.method.corrections=1"],
    "teleport": [*ONE, STEPS, "sampler.method={type: teleport, sigma: 2.0}"],
    "or": [
        "evaluate", BOTH, "weights=[0.5,0.5]", *SHORT, "episodes=1", "composer=or", "sampler=ancestral", STEPS,
    ],
}  # fmt: skip
"""The command that each folder was begun with, in today's words."""


@pytest.fixture
def earlier(tmp_path):
    return lambda kind: shutil.copytree(EARLIER / kind, tmp_path / kind)


def test_the_folders_record_import_paths():
    text = "".join(path.read_text() for path in EARLIER.glob("*/manifest.json"))
    recorded = {path for path in TYPES if f'"{path}"' in text}
    assert {"gpc.worker.EnvSpec", "gpc.control.Sampling", "gpc.bayesian_search.Bayesian"} < recorded
    assert len(recorded) >= 9


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_folder_is_reported(kind, earlier, capsys):
    folder = earlier(kind)
    assert main(["report", str(folder)]) == 0, capsys.readouterr().err
    assert "tiny-noise" in (folder / "report.html").read_text()


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_same_command_resumes_a_folder_and_runs_nothing_again(kind, earlier, tiny, monkeypatch, capsys):
    folder = earlier(kind)
    monkeypatch.setattr("gpc.rollout.executors.rollout", lambda jobs, *_: iter([1 / 0 for _ in jobs]))
    rows, summary = ((folder / name).read_bytes() for name in ("episodes.jsonl", "summary.json"))
    ask = [key.format(*tiny) if key in (BOTH, FIRST) else key for key in COMMANDS[kind]]
    assert main([*ask, f"run_dir={folder}"]) == 0, capsys.readouterr().err
    assert (folder / "episodes.jsonl").read_bytes() == rows
    assert json.loads((folder / "summary.json").read_text()).keys() >= json.loads(summary).keys() - {"epsilon"}


@pytest.mark.parametrize("kind", COMMANDS)
def test_an_episode_is_run_again(kind, earlier, tiny):
    folder = earlier(kind)
    row = read_rows(folder / "episodes.jsonl")[-1]
    names = json.loads((folder / "manifest.json").read_text())["config"]
    side = names["sides"][row.candidate] if row.phase == "compare" else names
    sources = [source for source in tiny if source.rpartition("/")[2] in side["policies"]]
    again = replay(folder, len(read_rows(folder / "episodes.jsonl")) - 1, sources, Console(quiet=True)).again
    assert (again.job.seed, again.steps) == (row.seed, row.steps)
    assert again.score == pytest.approx(row.score, abs=1e-4)  # bit for bit on the machine that recorded it


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("rho", 7.0, True), ("warm", None, True), ("reuse", {}, True), ("warm", 1.0, False), ("rho", 5.0, False)],
)
def test_a_setting_that_is_gone_is_dropped_if_it_was_todays_behaviour(key, value, expected, earlier, tiny, capsys):
    folder = earlier("evaluate")
    manifest = json.loads((folder / "manifest.json").read_text())
    for part in ("config", "resolved"):
        manifest[part]["sampler"][key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert (key in upgraded(manifest)["config"]["sampler"]) != expected
    ask = [key.format(*tiny) if key == BOTH else key for key in COMMANDS["evaluate"]]
    assert (main([*ask, f"run_dir={folder}"]) == 0) == expected
    assert expected or f"sampler.{key}={value}" in capsys.readouterr().err


def test_a_setting_of_todays_classes_stays_although_it_has_an_old_name():
    config = {"search": {"class": "outside.Search", "demonstrations": "mine"}}
    assert upgraded_config(config) == config
