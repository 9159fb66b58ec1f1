"""An episode again, from its run folder alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import gpc
from gpc.commands.cli import main
from gpc.commands.replay import Replay
from gpc.results.evidence import Evidence
from gpc.results.run_folder import read_rows
from gpc.rollout.engine import Episode, Job

SHORT = ["env.max_steps=16", "video=0", "sampler.steps=3"]


@pytest.fixture(scope="module")
def searched(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    plan = ["search=grid", "search.episodes=1", "search.step=0.5", "report.episodes=1"]
    assert main(["search", f"policies=[{','.join(tiny)}]", *SHORT, *plan, f"run_dir={folder}"]) == 0
    return folder


@pytest.fixture
def said(capsys):
    def run(folder, episode, *more):
        code = main(["replay", str(folder), "--episode", str(episode), "--trust", *more])
        captured = capsys.readouterr()
        return code, " ".join((captured.out + captured.err).split())

    return run


def mixture(folder):
    return next(i for i, row in enumerate(read_rows(folder / "episodes.jsonl")) if row.weights == (0.5, 0.5))


def test_a_mixture_comes_out_the_same(searched, said):
    code, text = said(searched, mixture(searched))
    assert code == 0, text
    assert "actions: all 16 the same, bit for bit" in text


def test_a_run_folder_does_not_say_where_it_was_begun(searched):
    assert str(searched) not in (searched / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("removed", "expected"),
    [({"rho": 7.0, "warm": None, "reuse": {}}, "bit for bit"), ({"warm": 1.0}, "takes no 'warm'")],
)
def test_a_run_with_settings_that_were_removed_since(searched, said, tmp_path, removed, expected):
    shutil.copytree(searched, tmp_path / "old")
    manifest = json.loads((searched / "manifest.json").read_text())
    manifest["resolved"]["sampler"] |= {"_target_": "gpc.control.Sampling", **removed}
    (tmp_path / "old/manifest.json").write_text(json.dumps(manifest))
    assert expected in said(tmp_path / "old", mixture(searched))[1]


def test_an_episode_that_differs_says_where_and_in_which_versions(searched, said, tmp_path):
    manifest = json.loads((searched / "manifest.json").read_text())
    episode = mixture(searched)
    array = zarr.open_group(searched / "trajectories.zarr", mode="a")["action"]
    kept = np.asarray(array[episode])
    changed = kept.copy()
    changed[5, 1] = np.nextafter(changed[5, 1], np.float32(np.inf))  # one bit
    array[episode] = changed
    older = manifest | {"versions": manifest["versions"] | {"torch": "1.0"}}
    (searched / "manifest.json").write_text(json.dumps(older))
    try:
        code, text = said(searched, episode, "--video", str(tmp_path / "both.mp4"))
    finally:
        array[episode] = kept
        (searched / "manifest.json").write_text(json.dumps(manifest))
    assert code == 1
    assert "action: differs from step 5 on" in text
    assert "other actions for the same observations" in text
    assert f"torch: 1.0 recorded, {manifest['versions']['torch']} installed" in text
    assert text.endswith("did not give the same results")
    assert (tmp_path / "both.mp4").stat().st_size > 1000


def test_a_video_that_cannot_be_written_does_not_cost_the_verdict(searched, said, tmp_path):
    code, text = said(searched, 0, "--video", str(tmp_path / "nowhere/both.mp4"))
    assert code == 0, text
    assert "the video is missing: RunError: " in text
    assert "actions: all 16 the same, bit for bit" in text


def test_where_the_observations_part_first_it_is_the_simulator(searched, said):
    arrays = dict(zarr.open_group(searched / "trajectories.zarr", mode="a").arrays())
    kept = {name: np.asarray(arrays[name][0]) for name in ("state", "action")}
    for name, step in (("state", 1), ("action", 8)):
        changed = kept[name].copy()
        changed[step, 0] += 1
        arrays[name][0] = changed
    code, text = said(searched, 0)
    for name, value in kept.items():
        arrays[name][0] = value
    assert code == 1
    assert "state: differs from step 8 on" in text
    assert "the simulator returned other observations first" in text


def test_the_other_side_of_a_comparison_and_guidance_come_out_the_same(tiny, said, tmp_path):
    policies = f"policies=[{','.join(tiny)}]"
    assert main(["compare", policies, *SHORT, "episodes=1", f"run_dir={tmp_path / 'compare'}"]) == 0
    assert said(tmp_path / "compare", 1)[0] == 0
    guided = ["composer=guidance", "weights=[1.5,-0.5]", "episodes=1", f"run_dir={tmp_path / 'guidance'}"]
    assert main(["evaluate", policies, *SHORT, *guided]) == 0
    assert said(tmp_path / "guidance", 0)[0] == 0


def test_a_key_by_policy_of_the_other_side_does_not_get_in_the_way(tiny, said, tmp_path):
    keys = ["steer={tiny-noise: {cost: smoothness, scale: 0.01}}", "action_names={tiny-flow: [x, y]}"]
    ask = ["compare", f"policies=[{','.join(tiny)}]", *SHORT, *keys, "episodes=1", f"run_dir={tmp_path}"]
    assert main(ask) == 0
    for episode in (0, 1):
        code, text = said(tmp_path, episode)
        assert code == 0, text


def test_a_run_from_before_a_key_by_policy_existed_is_replayed(searched, said, tmp_path):
    for name in ("episodes.jsonl", "trajectories.zarr"):
        (tmp_path / name).symlink_to(searched / name)
    manifest = json.loads((searched / "manifest.json").read_text())
    for key in ("origin", "action_names", "steer"):
        del manifest["resolved"][key]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert said(tmp_path, mixture(searched))[0] == 0


def test_policies_that_were_loaded_elsewhere_are_named_and_another_one_is_refused(tiny, parents, said, tmp_path):
    gpc.evaluate(
        parents[0],
        gpc.EnvSpec("pusht", max_steps=16),
        episodes=1,
        sampler=gpc.Sampling(steps=3),
        run_dir=tmp_path,
        video=0,
    )
    code, text = said(tmp_path, 0)
    assert (code, "say where tiny-noise are now" in text) == (2, True)
    assert said(tmp_path, 0, "--policies", tiny[0])[0] == 0
    code, text = said(tmp_path, 0, "--policies", tiny[1])
    assert (code, "tiny-flow is not the tiny-noise that was recorded" in text) == (2, True)
    code, text = said(tmp_path, 0, "--policies", *tiny)
    assert (code, "--policies names 2; the episode was run by 1" in text) == (2, True)


def test_a_recorded_array_without_entries_parts_at_the_first_step(searched):
    steps = {"action": np.zeros((4, 2)), "state": np.zeros((0, 3))}
    now = Episode(Job(0, (1.0,), 0), False, 0.0, 4, steps | {"state": np.ones((1, 3))})
    assert Replay(read_rows(searched / "episodes.jsonl")[0], steps, now, 4, {}).parting("state") == 0


def test_what_cannot_be_replayed_is_one_line(searched, said, tmp_path):
    assert "episodes 0 to" in said(searched, 99)[1]
    assert said("/nowhere", 0)[0] == said(searched, -1)[0] == said(searched, "x")[0] == 2
    manifest = json.loads((searched / "manifest.json").read_text())
    del manifest["resolved"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "episodes.jsonl").write_text((searched / "episodes.jsonl").read_text())
    code, text = said(tmp_path, 0)
    assert (code, "before run folders held the whole configuration" in text) == (2, True)


def test_a_folder_without_trajectories_is_compared_by_its_row(searched, said, tmp_path):
    for name in ("episodes.jsonl", "manifest.json"):
        shutil.copy(searched / name, tmp_path / name)
    code, text = said(tmp_path, mixture(searched), "--video", str(tmp_path / "now.mp4"))
    assert (code, "actions: not recorded" in text) == (0, True), text
    assert (tmp_path / "now.mp4").stat().st_size > 1000
    rows = (tmp_path / "episodes.jsonl").read_text()
    (tmp_path / "episodes.jsonl").write_text(rows.replace('"steps": 16', '"steps": 15'))
    code, text = said(tmp_path, mixture(searched))
    assert (code, "steps: 15 recorded, 16 now" in text) == (1, True), text


EVIDENCE = Path(__file__).parents[1] / "docs/results/evidence"


def test_a_published_row_comes_out_the_same(capsys):
    """An early run, whose manifest has the import paths of its time."""
    rows = Evidence(EVIDENCE / "pusht.json").rows("diffusion-flow")
    mixed = [i for i, row in enumerate(rows) if row.phase == "report" and min(row.weights) > 0]
    episode = min(mixed, key=lambda i: rows[i].steps)
    code = main(["replay", str(EVIDENCE / "pusht.json"), "--run", "diffusion-flow", "--episode", str(episode)])
    text = " ".join(capsys.readouterr().out.split())
    assert "success: True, the same" in text
    assert f"steps: {rows[episode].steps}, the same" in text
    assert code == 0, text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["robomimic.json", "--run", "can-flow-image"], "the weights of can-image are not bundled with this gpc"),
        (["pusht.json"], "holds 10 runs; name one, as in --run diffusion-flow"),
        (["pusht.json", "--run", "diffusion-flo"], "did you mean 'diffusion-flow'?"),
        (["nothing.json", "--run", "x"], "nothing.json cannot be read: No such file"),
    ],
)
def test_a_row_that_cannot_be_replayed_is_one_line(arguments, words, capsys):
    file, *rest = arguments
    assert main(["replay", str(EVIDENCE / file), *rest, "--episode", "0"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
