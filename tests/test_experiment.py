"""Whole commands on tiny policies: the same table whatever happens on the way."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import make_card, save_policy
from hostile import NAMES
from imageio_ffmpeg import count_frames_and_secs

import gpc
from gpc.commands.cli import main
from gpc.commands.config import load_config
from gpc.commands.setup import compose_from, run_dir_of
from gpc.demonstrations import read, write_replay_buffer
from gpc.errors import InputError, RunError
from gpc.inert import Console
from gpc.inference.chunk import sample_actions, sample_chunk
from gpc.inference.settings import Sampling
from gpc.results.run_folder import read_rows
from gpc.results.video import write_video
from gpc.score.keyed_noise import keyed_noise
from gpc.weights.searches import Grid

SEARCH = ["search=grid", "env.max_steps=48", "search.episodes=4", "search.step=0.25", "report.episodes=6", "video=1"]


def arguments(tiny, folder, *more):
    return ["search", f"policies=[{','.join(tiny)}]", *SEARCH, f"run_dir={folder}", *more]


def untimed(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop("timing")["seconds_per_episode"] > 0
    return summary


def table(folder):
    return sorted(read_rows(folder / "episodes.jsonl"))


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main(arguments(tiny, folder)) == 0
    return folder


def test_a_search_writes_everything_it_promises(undisturbed):
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert [c["weights"] for c in summary["candidates"]] == [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0, 1]]
    assert {c["n_episodes"] for c in summary["candidates"]} == {4}
    assert {p["n_episodes"] for p in (*summary["parents"], summary["winner"])} == {6}
    assert 0 <= summary["p_value"] <= 1
    rows = table(undisturbed)
    assert {r.seed for r in rows if r.phase == "search"} == set(range(100_000, 100_004))
    assert {r.seed for r in rows if r.phase == "report"} == set(range(200_000, 200_006))
    for k, row in enumerate(read_rows(undisturbed / "episodes.jsonl")):
        rewards = zarr.open_group(undisturbed / "trajectories.zarr", mode="r")["reward"][k]
        assert row.sum_reward == pytest.approx(np.nansum(rewards), rel=1e-5)
    won = [row for row in rows if row.phase == "report" and list(row.weights) == summary["winner"]["weights"]]
    assert summary["winner"]["avg_sum_reward"] == pytest.approx(np.mean([row.sum_reward for row in won]))
    assert summary["winner"]["avg_mean_reward"] == pytest.approx(np.mean([row.sum_reward / row.steps for row in won]))
    assert summary["timing"]["n_episodes"] == len(rows)
    assert summary["timing"]["ms_per_chunk"] > 0
    assert summary["versions"]["gym-pusht"] == version("gym-pusht")
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert all(len(digest) == 64 for digest in manifest["config"]["fingerprints"].values())
    assert (undisturbed / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert (undisturbed / "episodes.mp4").stat().st_size > 1000
    page = (undisturbed / "report.html").read_text()
    assert "outcome of every report seed" in page
    assert "data-file=" in page
    assert len(json.loads((undisturbed / "episodes.json").read_text())) == 1
    assert re.search(r"\d s an episode, [\d.]+ ms a chunk, in batches.*python 3.*gym-pusht ", page, re.DOTALL)


def test_trajectories_are_kept_for_every_row(undisturbed):
    group = zarr.open_group(undisturbed / "trajectories.zarr", mode="r")
    for i, row in enumerate(read_rows(undisturbed / "episodes.jsonl")):
        assert np.isfinite(group["action"][i, : row.steps]).all()
        assert np.isnan(group["action"][i, row.steps :]).all()
        assert group["reward"][i, : row.steps].max() == pytest.approx(row.score)


@pytest.mark.parametrize("engine", [["engine.workers=1"], ["engine.lanes=1"], ["engine.lanes=7"], ["engine.lanes=60"]])
def test_workers_and_batch_size_do_not_change_the_table(undisturbed, tiny, tmp_path, engine):
    assert main(arguments(tiny, tmp_path, *engine)) == 0
    assert table(tmp_path) == table(undisturbed)


def test_a_killed_search_goes_on_to_the_same_table(undisturbed, tiny, tmp_path):
    command = [sys.executable, "-P", "-m", "gpc.commands.cli", *arguments(tiny, tmp_path, "engine.lanes=3")]
    for target in (3, 9, 16):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while child.poll() is None and len(read_rows(tmp_path / "episodes.jsonl")) < target:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert 16 <= len(table(tmp_path)) < len(table(undisturbed))
    assert main(arguments(tiny, tmp_path)) == 0
    assert table(tmp_path) == table(undisturbed)
    assert untimed(tmp_path) == untimed(undisturbed)


def test_sigterm_ends_a_search_as_ctrl_c_does(tiny, tmp_path):
    """On a terminal: the cursor comes back, the exit code says why, and the same command goes on."""
    command = [sys.executable, "-P", "-m", "gpc.commands.cli", *arguments(tiny, tmp_path, "engine.lanes=3")]
    ours, theirs = pty.openpty()
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown, sent = b"", False
    with suppress(OSError):  # the terminal ends with the process
        while part := os.read(ours, 1024):
            shown += part
            if not sent and len(read_rows(tmp_path / "episodes.jsonl")) >= 3:
                child.terminate()
                sent = True
    os.close(ours)
    assert child.wait() == 143
    assert b"terminated; the same command resumes from here" in shown
    assert shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l") >= 0
    assert 3 <= len(table(tmp_path)) < 38
    assert main(arguments(tiny, tmp_path, "video=0")) == 0


def test_other_packages_do_not_add_to_a_run_but_print_a_finished_one(undisturbed, tiny, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "run")
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"versions": manifest["versions"] | {"torch": "1.0"}}))
    assert main(arguments(tiny, tmp_path / "run", "video=0")) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    rows = tmp_path / "run/episodes.jsonl"
    rows.write_bytes(rows.read_bytes()[:-1])
    capsys.readouterr()
    assert main(arguments(tiny, tmp_path / "run", "video=0")) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"was started with torch 1.0, now {manifest['versions']['torch']} is installed" in error
    assert error.endswith("pip install 'torch==1.0', or use another run_dir")


@pytest.mark.parametrize(
    ("name", "code"),
    [("curve.png", 0), ("report.html", 1), ("summary.json", 1), ("lock", 2), ("trajectories.zarr/zarr.json", 2)],
)
def test_a_file_that_cannot_be_written_is_one_line(name, code, undisturbed, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert main(arguments(tiny, folder, "video=0")) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{folder}" in error
    assert main(arguments(tiny, folder, "video=0")) == code  # no lock was kept


def test_a_failed_video_does_not_cost_the_page(undisturbed, tiny, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    for name in ("report.html", "episodes.mp4"):
        (folder / name).unlink()
    (folder / "episodes.mp4").mkdir()
    assert main(arguments(tiny, folder)) == 0
    assert "the video is missing: " in capsys.readouterr().err
    assert (folder / "report.html").exists()


def test_a_video_on_a_full_disk_is_one_line_and_leaves_the_old_one(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    frames, failed = np.random.default_rng(0).integers(0, 255, (100, 96, 96, 3), np.uint8), []
    try:
        for count in (1, 5, 8, 10, 12, 14, 16, 20, 100):  # the disk is full at the end, or in the middle
            try:
                write_video(tmp_path / "clip.mp4", [("now", frames[:count])])
            except RunError as error:
                failed.append(str(error))
            else:
                assert count_frames_and_secs(tmp_path / "clip.mp4")[0] == count
        assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert len(failed) >= 2
    assert all(re.match(r".*clip\.mp4 cannot be written: .*is the disk full\?", text) for text in failed)


@pytest.mark.parametrize("failure", [TypeError, ValueError, KeyboardInterrupt])
def test_a_video_that_fails_leaves_no_file_and_blames_no_disk(failure, tmp_path, monkeypatch):
    def fail(*_):
        raise failure("a frame of another size")

    monkeypatch.setattr("gpc.results.video.label", fail)
    with pytest.raises(failure, match=r"^a frame of another size$"):
        write_video(tmp_path / "clip.mp4", [("now", np.zeros((2, 96, 96, 3), np.uint8))])
    assert list(tmp_path.iterdir()) == []


HELD_OUT = Path(__file__).parent / "data/pusht-held-out.zarr.zip"
SEARCHES = {
    "racing": ["search.budget=40"],
    "tpe": ["search.budget=40", "search.episodes=3"],
    "demos": [],
}


@pytest.mark.parametrize("name", SEARCHES)
def test_any_search_that_lost_its_last_rows_comes_to_the_same_end(name, tiny, tmp_path):
    small = [f"policies=[{','.join(tiny)}]", "env.max_steps=16", "report.episodes=4", "video=0"]
    small += [f"search={name}", f"demonstrations={HELD_OUT}", *SEARCHES[name]]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["search", *small, f"run_dir={whole}"]) == 0
    rows = table(whole)
    assert sum(row.phase == "search" for row in rows) <= 40
    shutil.copytree(whole, cut)
    lines = (cut / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "episodes.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    assert main(["search", *small, f"run_dir={cut}"]) == 0
    assert table(cut) == rows
    assert untimed(cut) == untimed(whole)

    summary = json.loads((whole / "summary.json").read_text())
    errors = summary["denoising_error"]
    assert sum(errors["weights"]) == pytest.approx(1)
    assert [1.0, 0.0] in [p["weights"] for p in errors["predicted"]]
    assert errors["n_measured"] == len(summary["candidates"])
    if name == "demos":
        assert summary["winner"]["weights"] == pytest.approx(errors["weights"], abs=0.01)
    page = (whole / "report.html").read_text()
    assert errors["verdict"].split("[")[0] in page
    assert "weights with the least error" in page


def test_other_demonstrations_do_not_continue_a_run(tiny, tmp_path, capsys):
    data = read(HELD_OUT)
    for episodes in ([0, 1], [2, 3]):
        write_replay_buffer(tmp_path / "some.zarr", data.select(episodes))
        small = ["env.max_steps=16", "report.episodes=1", "video=0", f"demonstrations={tmp_path / 'some.zarr'}"]
        code = main(["search", f"policies=[{','.join(tiny)}]", "search=demos", *small, f"run_dir={tmp_path / 'run'}"])
    assert code == 2
    assert "was started with demonstrations=" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(undisturbed, tiny):
    before = (undisturbed / "episodes.jsonl").read_bytes()
    assert main(arguments(tiny, undisturbed)) == 0
    assert (undisturbed / "episodes.jsonl").read_bytes() == before


def test_the_python_interface_gives_the_command_lines_episodes(undisturbed, tiny):
    a, b = map(gpc.load_policy, tiny)
    policy = gpc.compose([a, b], [0.25, 0.75])
    result = gpc.evaluate(policy, gpc.EnvSpec("pusht", max_steps=48), episodes=4, seed=100_000)
    search = [r for r in table(undisturbed) if r.phase == "search" and r.weights == (0.25, 0.75)]
    assert [(r.seed, r.score) for r in result.rows] == [(r.seed, r.score) for r in search]
    assert result.score == pytest.approx(np.mean([r.score for r in search]))
    assert result.success_ci95[0] <= result.success <= result.success_ci95[1]


def test_signed_weights_are_evaluated_as_guidance(tiny, parents, tmp_path):
    common = ["env.max_steps=48", "episodes=3"]
    told = [f"policies=[{','.join(tiny)}]", "composer=guidance", "weights=[1.5,-0.5]", "video=0", f"run_dir={tmp_path}"]
    assert main(["evaluate", *common, *told]) == 0
    rows = table(tmp_path)
    assert {row.weights for row in rows} == {(1.5, -0.5)}
    assert json.loads((tmp_path / "summary.json").read_text())["weights"] == [1.5, -0.5]
    config = json.loads((tmp_path / "manifest.json").read_text())["config"]
    assert config["weights"] == [1.5, -0.5]
    assert "[1.5, -0.5]" in (tmp_path / "report.html").read_text()
    again = gpc.evaluate(
        gpc.compose(parents, gpc.Guidance([1.5, -0.5])), gpc.EnvSpec("pusht", max_steps=48), episodes=3
    )
    assert again.rows == tuple(rows)


def test_report_and_policies_and_doctor_run(undisturbed, capsys):
    assert main(["report", str(undisturbed)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert main(["policies"]) == 0
    assert "pusht-diffusion" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    assert "gym-pusht" in capsys.readouterr().out


def test_every_example_of_the_help_and_the_readme_is_a_valid_configuration(capsys):
    main(["-h"])
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines = [line.strip() for line in (capsys.readouterr().out + readme).splitlines()]
    examples = [
        shlex.split(line, comments=True)[1:] for line in lines if line.startswith(("gpc search env", "gpc evaluate "))
    ]
    examples = [
        (kind, overrides) for kind, *overrides in examples if "KEY" not in overrides[0] and "-h" not in overrides[0]
    ]
    assert len(examples) >= 5
    for kind, overrides in examples:
        assert load_config(kind, overrides).policies


def test_policies_of_some_dimensions_each_act_together(tmp_path, capsys):
    """One pushes along x, the other along y; alone, or in a search, neither can act."""
    folders = []
    for name, own in (("tiny-noise", "across"), ("tiny-flow", "up")):
        card = make_card(name, names=[own], scale=[256.0], offset=[256.0])
        folders.append(save_policy(tmp_path / name, card))
    both = [f"policies=[{','.join(folders)}]", "env.max_steps=16"]
    assert main(["evaluate", *both, "weights=[0.5,0.5]", "episodes=2", "video=0", f"run_dir={tmp_path / 'run'}"]) == 0
    assert "tiny-flow acts in up of across, up" in capsys.readouterr().out
    assert len(table(tmp_path / "run")) == 2
    for refused in (["evaluate", *both, "weights=[1,0]"], ["search", *both], ["diagnose", *both]):
        assert main(refused) == 2
        assert "cannot act alone: it has no up" in capsys.readouterr().err


def test_what_serves_and_deploys_speaks_in_the_order_of_the_whole_whoever_has_weight(tiny):
    """tiny-flow's dimensions are the other way round; without weight for tiny-noise a robot must not get y as x."""
    keys = [f"policies=[{','.join(tiny)}]", "action_names={tiny-flow: [y, x]}", "weights=[0,1]"]
    flow, numbers = gpc.load_policy(tiny[1]), np.zeros(2, np.int64)
    seen = {key: np.ones((2, 2, *shape), np.float32) for key, shape in flow.observations.shapes.items()}
    found = sample_actions(
        compose_from(load_config("serve", keys), Console(quiet=True)), Sampling(), seen, numbers, numbers
    )
    noise = keyed_noise(numbers, numbers, 1, flow.actions.shape).flip(-1)
    own = flow.actions.decode(sample_chunk(flow, flow.observations.read(seen), noise, Sampling()))
    assert np.array_equal(found, own.flip(-1))


def test_one_arm_of_two_is_neither_served_nor_deployed(tiny):
    keys = [f"policies=[{','.join(tiny)}]", "action_names={tiny-flow: [a, b]}", "weights=[1,0]"]
    with pytest.raises(InputError, match="tiny-noise cannot act alone: it has no a, b"):
        compose_from(load_config("serve", keys), Console(quiet=True))


def test_names_that_do_not_meet_are_shown_with_the_key_that_mends_it(tiny, tmp_path, capsys):
    ask = ["evaluate", f"policies=[{','.join(tiny)}]", "weights=[0.5,0.5]", f"run_dir={tmp_path}"]
    assert main([*ask, "action_names={tiny-flow: [a0, a1]}"]) == 2
    assert "acts in 4 dimensions (x, y, a0, a1), pusht in (2,); 'action_names={" in capsys.readouterr().err


def test_names_and_origins_are_given_by_policy(tiny, tmp_path, capsys):
    ask = ["evaluate", f"policies=[{tiny[0]}]", "episodes=1", "env.max_steps=16", "video=0", f"run_dir={tmp_path}"]
    assert main([*ask, "action_names={tiny-noise: [right, up]}", "origin={tiny-noise: agent_pos}"]) == 0
    fingerprints = json.loads((tmp_path / "manifest.json").read_text())["config"]["fingerprints"]
    assert fingerprints["tiny-noise"].endswith('from agent_pos ["right", "up"]')
    assert main([*ask, "action_names={tiny: [right, up]}"]) == 2
    assert "action_names goes by policy; there is no 'tiny'; choose one of tiny-noise" in capsys.readouterr().err
    assert main([*ask, "origin={tiny-noise: nowhere}"]) == 2
    assert "tiny-noise reads 'nowhere' (2,)" in capsys.readouterr().err


def test_more_episodes_of_the_same_settings_go_on_and_other_settings_have_a_folder_of_their_own(
    tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    ask = ["evaluate", f"policies=[{tiny[0]}]", "env.max_steps=16", "video=0", "sampler.steps=2"]

    def found():
        return {path: json.loads((path / "summary.json").read_text())["seeds"] for path in Path("runs").iterdir()}

    assert main([*ask, "episodes=1"]) == 0
    ((folder, seeds),) = found().items()
    assert re.fullmatch(r"evaluate-pusht-[\w-]+-[0-9a-f]{8}", folder.name)
    assert seeds == [200_000, 200_000]  # those of a search's report, not of a search
    assert main([*ask, "episodes=3"]) == 0
    assert found() == {folder: [200_000, 200_002]}
    capsys.readouterr()
    assert main([*ask, "episodes=2"]) == 0
    assert "has begun 3 episodes; all of them count" in capsys.readouterr().out
    assert found() == {folder: [200_000, 200_002]}
    assert main([*ask, "episodes=1", "sampler.steps=3"]) == 0
    assert sorted(found().values()) == [[200_000, 200_000], [200_000, 200_002]]
    assert main([*ask, "episodes=1", f"run_dir={folder}", "seed=7"]) == 2
    assert "started with seed=200000, now it is 7" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_policys_name_chooses_no_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_dir_of(load_config("search", ["policies=[a,b]"]), "search", name, [name, "b"], {})
    folder.mkdir(parents=True)
    assert [path.relative_to(tmp_path) for path in tmp_path.glob("*/*")] == [folder]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert not set(":\n\x1b\u202e") & set(folder.name)


@pytest.mark.parametrize(
    ("kind", "env", "names", "folder"),
    [
        ("search", "PushT", ["pusht-diffusion", "pusht-flow"], "search-pusht-pusht-diffusion+pusht-flow"),
        ("evaluate", "gymnasium/FetchPush-v3", ["my_policy.v2"], "evaluate-gymnasium-fetchpush-v3-my_policy.v2"),
        ("compare", "PushT", ["a + b [0.4, 0.6]", "b"], "compare-pusht-a + b [0.4, 0.6]+b"),
    ],
)
def test_harmless_names_are_those_of_the_folder(kind, env, names, folder):
    assert run_dir_of(load_config(kind, ["policies=[a,b]"]), kind, env, names) == Path("runs", folder)
    assert run_dir_of(load_config(kind, ["policies=[a,b]", "run_dir=../mine:1"]), kind, env, names) == Path("../mine:1")


def test_a_table_that_cannot_be_printed_does_not_cost_the_page(undisturbed, tiny, tmp_path, monkeypatch):
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    (folder / "report.html").unlink()
    monkeypatch.setattr("gpc.results.report.print_summary", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["search", f"policies=[{','.join(tiny)}]", *SEARCH, "video=0", f"run_dir={folder}"])
    assert "outcome of every report seed" in (folder / "report.html").read_text()


@dataclass(kw_only=True)
class Wild(Grid):
    """A search from outside that proposes weights which are not convex."""

    def _begin(self):
        super()._begin()
        self.candidates[1] = (0.5, 0.6)


@dataclass(kw_only=True)
class Orphaned(Grid):
    """A search that lacks the second policy alone."""

    def _begin(self):
        super()._begin()
        self.candidates.pop()


def test_a_search_without_a_policy_alone_is_one_line(parents):
    with pytest.raises(InputError, match=r"Orphaned lacks the candidate \(0\.0, 1\.0\), tiny-flow alone"):
        gpc.search(parents, search=Orphaned(step=0.5), report_episodes=1)


def test_a_search_from_python_has_the_bounds_of_the_command_line(parents):
    with pytest.raises(InputError, match=r"search\.episodes=0: Expected `int` >= 1"):
        gpc.search(parents, search=Grid(episodes=0), report_episodes=1)


def test_a_nested_composition_under_other_weights_does_not_resume(parents, tmp_path):
    env, sampling = gpc.EnvSpec("pusht", max_steps=8), gpc.Sampling(steps=2)

    def run(weights):
        inner = gpc.steer(gpc.compose(parents, weights), "smoothness", 0.01, name="inner")
        gpc.evaluate(inner, env, episodes=1, sampler=sampling, run_dir=tmp_path, video=0)

    run([0.5, 0.5])
    run([0.5, 0.5])
    with pytest.raises(InputError, match=r"fingerprints\.inner"):
        run([0.3, 0.7])


def test_weights_that_a_search_proposes_are_checked(parents):
    with pytest.raises(InputError, match=r"\[0\.5, 0\.6\] sum to 1\.1"):
        gpc.search(parents, search=Wild(step=0.5, episodes=1), report_episodes=1)


def test_the_command_line_and_python_search_an_average_alike(parents, tiny, tmp_path):
    best = gpc.search(
        gpc.AveragedChunks(parents), gpc.EnvSpec("pusht", max_steps=8), search=Grid(step=0.5, episodes=1),
        report_episodes=1, sampler=Sampling(steps=2), run_dir=tmp_path / "python", video=1,
    )  # fmt: skip
    command = [
        "env=pusht",
        f"policies=[{','.join(tiny)}]",
        "composer=average",
        "search=grid",
        "search.step=0.5",
        "video=1",
    ]
    command += [
        "search.episodes=1",
        "report.episodes=1",
        "env.max_steps=8",
        "sampler.steps=2",
        f"run_dir={tmp_path / 'line'}",
    ]
    assert main(["search", *command]) == 0
    assert best.rows == tuple(sorted(read_rows(tmp_path / "line" / "episodes.jsonl")))
    configs = [json.loads((tmp_path / name / "manifest.json").read_text())["config"] for name in ("python", "line")]
    assert configs[0] == configs[1]
    assert configs[0]["composer"] == {"type": "average"}
    python, line = ({path.name for path in (tmp_path / name).iterdir()} for name in ("python", "line"))
    assert python == line >= {"report.html", "curve.png", "episodes.mp4", "summary.json"}
