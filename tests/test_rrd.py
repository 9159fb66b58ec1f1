"""`gpc report RUN --rrd FILE`: what rerun is given, read back from the file."""

import json

import numpy as np
import pytest

from gpc.commands.cli import main
from gpc.results.run_folder import read_rows
from gpc.results.trajectories import read_trajectory


def series(recording, entity):
    """Steps and values of a curve in a file."""
    table = recording.view(index="step", contents=entity.partition(":")[0]).select().read_all().to_pandas()
    column = next(name for name in table.columns if name.startswith(entity))
    table = table.dropna(subset=[column])
    return table["step"].to_numpy(), np.stack(table[column].to_numpy())


def test_episodes_of_one_seed_stand_at_the_same_place(tiny, tmp_path, capsys):
    pytest.importorskip("rerun")
    dataframe = pytest.importorskip("rerun.dataframe")  # until 0.27
    run, file = tmp_path / "run", tmp_path / "run.rrd"
    small = ["env=pusht", "env.max_steps=12", "video=1", "episodes=2", f"run_dir={run}"]
    assert main(["compare", f"policies=[{','.join(tiny)}]", *small]) == 0
    assert main(["report", str(run), "--rrd", str(file)]) == 0
    assert f"for rerun: {file}" in capsys.readouterr().out
    recording, rows = dataframe.load_recording(file), read_rows(run / "episodes.jsonl")
    entities = {column.entity_path for column in recording.schema().component_columns()}
    sides = [side["name"] for side in json.loads((run / "summary.json").read_text())["sides"]]
    assert sides == ["tiny-noise", "tiny-flow"]
    assert {f"/compare/{name}/{part}" for name in sides for part in ("action", "reward", "score", "success")} < entities
    assert {"/compare/tiny-flow/observation/keypoints", "/episodes"} < entities
    starts = {}
    for candidate, name in enumerate(sides):
        steps, actions = series(recording, f"/compare/{name}/action")
        episodes = sorted((row.seed, i) for i, row in enumerate(rows) if row.candidate == candidate)
        recorded = [read_trajectory(run, i)["action"] for _, i in episodes]
        np.testing.assert_allclose(actions, np.concatenate(recorded), rtol=1e-6)
        ends, scores = series(recording, f"/compare/{name}/score")
        assert scores.ravel().tolist() == pytest.approx([rows[i].score for _, i in episodes])
        starts[name] = steps[len(recorded[0])]
        assert ends[0] == len(recorded[0]) - 1
    assert len(set(starts.values())) == 1
    steps, _ = series(recording, "/episodes:VideoFrameReference")
    assert steps[0] in (0, starts["tiny-flow"])  # of the one seed in the video
    assert len(steps) == 12


def test_a_file_is_of_one_run(capsys):
    assert main(["report", "a", "b", "--rrd", "x.rrd"]) == 2
    assert "--rrd takes the episodes of one run, not of 2" in capsys.readouterr().err
