import json
import os
import resource
import shutil
import subprocess
import threading
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zarr
from made_up import random_search

from gpc.errors import InputError, RunError
from gpc.results.leaderboard import read_run
from gpc.results.run_folder import WAITING, Row, RunFolder, Writer, read_rows
from gpc.results.trajectories import FILE_BYTES, read_trajectory

CONFIG = {"policies": ["a"], "sampler": {"steps": 8}}
STEPS = {"action": np.arange(8, dtype=np.float32).reshape(4, 2)}


def row(seed, candidate=0, phase="search"):
    return Row(phase, candidate, seed, (0.1, 0.9), seed % 2 == 0, 1 / (1 + seed), 10)


def test_rows_and_trajectories_come_back(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        for seed in (3, 1, 2):
            folder.extend([(row(seed), STEPS)])
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        assert folder.phase("search") == [row(1), row(2), row(3)]
    np.testing.assert_array_equal(read_trajectory(tmp_path, 2)["action"], STEPS["action"])
    with pytest.raises(InputError, match=r"episode 900 of .* cannot be read"):
        read_trajectory(tmp_path, 900)


def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write('{"phase": "sea')
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(2), STEPS)])
    assert read_rows(tmp_path / "episodes.jsonl") == [row(1), row(2)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    path = tmp_path / "episodes.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(RunError, match="line 1 is damaged"):
        RunFolder(tmp_path, CONFIG, 4)


def test_another_configuration_is_refused_naming_the_difference(tmp_path):
    RunFolder(tmp_path, CONFIG, 4).close()
    with pytest.raises(InputError, match=r"sampler\.steps=8, now it is 16; use another run_dir"):
        RunFolder(tmp_path, {"policies": ["a"], "sampler": {"steps": 16}}, 4)


BEFORE = {
    "sampler": {"_target_": "gpc.control.Sampling", "steps": 8},
    "composer": {"_target_": "gpc.composition.either"},
    "sides": [{"composer": {"_target_": "gpc.composition.either"}}],
}
AFTER = {
    "sampler": {"steps": 8, "candidates": 1},
    "composer": {"type": "or", "temperature": 1.0},
    "sides": [{"composer": {"type": "or", "temperature": 1.0}}],
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler": AFTER["sampler"] | {"best_of": {"n": 2}}}, r"sampler\.best_of=None, now it is {'n': 2}"),
        ({"composer": AFTER["composer"] | {"temperature": 0.0}}, r"composer\.temperature=1\.0, now it is 0\.0"),
        ({"sides": [{"composer": AFTER["composer"] | {"temperature": 0.0}}]}, r"started with sides=.*0\.0"),
    ],
)
def test_a_setting_of_a_later_version_was_at_its_default_before(changed, said, tmp_path):
    RunFolder(tmp_path, BEFORE, 4).close()
    RunFolder(tmp_path, AFTER, 4).close()
    with pytest.raises(InputError, match=said):
        RunFolder(tmp_path, AFTER | changed, 4)


def test_a_setting_that_was_removed_since_is_ignored_at_the_value_that_it_now_has(tmp_path):
    old = BEFORE["sampler"] | {"rho": 7.0, "warm": None, "reuse": {}}
    RunFolder(tmp_path / "a", BEFORE | {"sampler": old}, 4).close()
    RunFolder(tmp_path / "a", BEFORE, 4).close()
    RunFolder(tmp_path / "b", BEFORE | {"sampler": old | {"warm": 1.0}}, 4).close()
    with pytest.raises(InputError, match=r"sampler\.warm=1\.0, now it is None"):
        RunFolder(tmp_path / "b", BEFORE, 4)


def test_two_processes_cannot_write_in_one_folder(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4), pytest.raises(InputError, match="in use by another gpc process"):
        RunFolder(tmp_path, CONFIG, 4)


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_finished(tmp_path):
    """On a file system of 1 MiB: /dev/full cannot stand in for a folder."""
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        big = [{"action": np.random.default_rng(seed).normal(size=(20_000, 2))} for seed in range(20)]
        with RunFolder(tmp_path, CONFIG, 20_000) as folder:
            folder.extend([(row(0), STEPS)])
            with pytest.raises(RunError, match=r"the disk is full; \d+ finished episodes are kept"):
                deque(folder.extend([(row(seed), big[seed])]) for seed in range(1, 20))
            kept = len(folder.rows)
        assert len(read_rows(tmp_path / "episodes.jsonl")) == kept >= 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@contextmanager
def small_files(limit):
    """Writes end at this byte of any file, in the midst of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("length", range(1, 61, 2))
def test_a_row_that_is_torn_by_a_full_disk_leaves_nothing_behind(length, tmp_path):
    folder = RunFolder(tmp_path, CONFIG, 4)
    folder.extend([(row(1), {})])
    long = Row("search", 0, 2, tuple(0.1 + i for i in range(length)), True, 0.5, 4)
    end = (tmp_path / "episodes.jsonl").stat().st_size
    with small_files(end + 7 * length % 100), pytest.raises(RunError, match="1 finished episodes are kept"):
        folder.extend([(long, {})])
    folder.close()
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(long, {})])
    assert read_rows(tmp_path / "episodes.jsonl") == [row(1), long]


def test_a_folder_that_cannot_be_opened_is_not_kept_locked(tmp_path):
    (tmp_path / "episodes.jsonl").mkdir()
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "config": {}, "versions": {}}')
    with pytest.raises(InputError, match="cannot be written: Is a directory") as caught:
        RunFolder(tmp_path, {}, 4)
    (tmp_path / "episodes.jsonl").rmdir()
    RunFolder(tmp_path, {}, 4).close()
    assert caught.value  # and the frames in which it was opened


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda path: path.rename(path.with_name("moved"))])
def test_a_folder_that_goes_away_is_noticed_at_the_next_row(lose, tmp_path):
    with RunFolder(tmp_path / "run", CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
        lose(tmp_path / "run")
        with pytest.raises(RunError, match="run was deleted or moved while the run wrote in it"):
            folder.extend([(row(2), STEPS)])
    assert not (tmp_path / "run").exists()


class Slow:
    """A folder on a disk that waits for `going`."""

    def __init__(self, folder):
        self.folder, self.going = folder, threading.Event()

    def extend(self, episodes):
        assert self.going.wait(20)
        self.folder.extend(episodes)


def test_episodes_wait_for_a_slow_disk_and_count_once_they_are_on_it(tmp_path):
    kept, handed = [], []
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        slow = Slow(folder)

        def hand_over():
            with Writer(
                slow, lambda count: kept.append((count, len(read_rows(tmp_path / "episodes.jsonl"))))
            ) as writer:
                for seed in range(500):
                    writer.put(row(seed), STEPS)
                    handed.append(seed)

        thread = threading.Thread(target=hand_over)
        thread.start()
        thread.join(0.5)
        assert len(handed) <= 2 * WAITING + 1
        assert not kept
        slow.going.set()
        thread.join(20)
    assert sum(count for count, _ in kept) == len(read_rows(tmp_path / "episodes.jsonl")) == 500
    assert [rows for _, rows in kept] == np.cumsum([count for count, _ in kept]).tolist()


def test_a_writer_that_fails_ends_the_run_and_lets_nothing_wait(tmp_path):
    def many(folder):
        with Writer(folder, lambda _: shutil.rmtree(tmp_path / "run")) as writer:
            for seed in range(1000):
                writer.put(row(seed), STEPS)

    with RunFolder(tmp_path / "run", CONFIG, 4) as folder, pytest.raises(RunError, match="was deleted"):
        many(folder)


def test_a_trajectory_is_on_disk_before_its_row(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name), sync(file))
    )
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        for seed in range(3):
            synced.clear()
            folder.extend([(row(seed), STEPS)])
            assert synced[-3:] == ["0.0.0.tmp", "action", "episodes.jsonl"]


def test_many_episodes_lie_in_few_files(tmp_path):
    steps = {name: np.full((3, 2), i, np.float32) for i, name in enumerate(("action", "reward", "state", "points"))}
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        for start in range(0, 1000, 50):
            folder.extend([(row(seed), steps) for seed in range(start, start + 50)])
    assert sum(path.is_file() for path in tmp_path.rglob("*")) < 30
    for episode in (0, 255, 256, 999):
        found = read_trajectory(tmp_path, episode)
        assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in steps.items()}


def test_a_trajectory_that_is_too_large_to_be_written_again_with_many_has_few_beside_it(tmp_path):
    big = {"action": np.zeros((2**20, 8), np.float32)}
    with RunFolder(tmp_path, CONFIG, 2**20) as folder:
        folder.extend([(row(0), big)])
        assert np.prod(folder._trajectories._arrays["action"].shards) * 4 <= FILE_BYTES


def test_whole_numbers_that_a_policy_observes_are_recorded(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(0), STEPS | {"buttons": np.array([[1, 0], [0, 2**40]])})])
    assert read_trajectory(tmp_path, 0)["buttons"].tolist() == [[1, 0], [0, 2**40]]


def test_a_folder_with_a_file_for_each_episode_is_continued_and_read(tmp_path):
    RunFolder(tmp_path, CONFIG, 4).close()
    group = zarr.open_group(tmp_path / "trajectories.zarr", mode="a")
    array = group.create_array("action", shape=(256, 4, 2), chunks=(1, 4, 2), dtype=np.float32, fill_value=np.nan)
    array[0] = STEPS["action"]
    (tmp_path / "episodes.jsonl").write_text(json.dumps(msgspec.structs.asdict(row(0))) + "\n")
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), {"action": STEPS["action"][:2]})])
    np.testing.assert_array_equal(read_trajectory(tmp_path, 0)["action"], STEPS["action"])
    np.testing.assert_array_equal(read_trajectory(tmp_path, 1)["action"], STEPS["action"][:2])


def test_a_damaged_trajectory_is_one_line(tmp_path):
    """Any byte of any file, changed or gone: an error, or what was written."""
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(seed), STEPS) for seed in range(3)])
    rng = np.random.default_rng(0)
    for path in (tmp_path / "trajectories.zarr").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for i in rng.choice(len(content), min(len(content), 100), replace=False):
            for damage in (content[:i], content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :]):
                path.write_bytes(damage)
                with suppress(InputError):
                    assert np.array_equal(read_trajectory(tmp_path, 1)["action"], STEPS["action"]), (path, i)
        if content:
            path.write_bytes(content)


def test_a_run_does_not_continue_over_a_damaged_trajectory(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    shard = tmp_path / "trajectories.zarr/action/0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with RunFolder(tmp_path, CONFIG, 4) as folder, pytest.raises(RunError, match=r"trajectories\.zarr is damaged: .+"):
        folder.extend([(row(2), STEPS)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [256, 2**40, 2]}, "action would take 8796093022208 bytes"),
        ({"shape": [256, 2**40, 2], "chunks": [1, 4, 2]}, "action would take 8796093022208 bytes"),
        ({"shape": [256, 2**20, 2], "chunks": [1, 1, 2]}, "action has 1048576 chunks"),
        ({"codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]}, "encoded with GzipCodec"),
        ({"data_type": "string", "fill_value": "", "codecs": [{"name": "vlen-utf8"}]}, "reads arrays of numbers"),
        ({"shape": [256], "chunks": [1]}, "gpc writes none such"),
        ({"shape": [256, 0, 2], "chunks": [1, 1, 2]}, "no actions of episode 0"),
    ],
)
def test_a_trajectory_of_a_stranger_takes_no_other_memory_or_codecs_than_our_own(change, words, tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    path = tmp_path / "trajectories.zarr/action/zarr.json"
    found = json.loads(path.read_text())
    found |= {
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": change.get("chunks", [1, *change.get("shape", found["shape"])[1:]])},
        }
    }
    found |= {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}]}
    path.write_text(json.dumps(found | {key: value for key, value in change.items() if key != "chunks"}))
    with pytest.raises(InputError, match=words):
        read_trajectory(tmp_path, 0)
    with pytest.raises(InputError, match=f"{words}|episodes of at most 0 steps, not 4"):
        RunFolder(tmp_path, CONFIG, 4)


def test_a_folder_of_longer_episodes_or_other_actions_is_not_continued(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    with pytest.raises(InputError, match="action has episodes of at most 4 steps, not 5; use another run_dir"):
        RunFolder(tmp_path, CONFIG, 5)
    with (
        RunFolder(tmp_path, CONFIG, 4) as folder,
        pytest.raises(RunError, match=r"entries of shape \(2,\), not \(1,\)"),
    ):
        folder.extend([(row(2), {"action": STEPS["action"][:, :1]})])
    assert read_rows(tmp_path / "episodes.jsonl") == [row(1)]


def test_an_episode_whose_shard_is_gone_is_one_line(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    (tmp_path / "trajectories.zarr/action/0.0.0").unlink()
    with pytest.raises(InputError, match=r"no actions of episode 0; copy its trajectories\.zarr, too"):
        read_trajectory(tmp_path, 0)


ROW = {"phase": "search", "candidate": 0, "seed": 7, "weights": [0.1, 0.9], "success": True, "score": 0.5, "steps": 3}
WRONG = {
    "a seed that is text": (ROW | {"seed": "7"}, "seed: Expected `int`, got `str`"),
    "a negative seed": (ROW | {"seed": -7}, "seed: "),
    "a score that is no number": (ROW | {"score": float("nan")}, "JSON is malformed"),
    "a weight that is infinite": (ROW | {"weights": [float("inf"), 0.0]}, "JSON is malformed"),
    "no weights": (ROW | {"weights": []}, "weights: "),
    "a success that is a number": (ROW | {"success": 1}, "success: Expected `bool`"),
    "no steps": (ROW | {"steps": 0}, "steps: "),
    "a phase of another program": (ROW | {"phase": "train"}, "phase: Invalid enum value 'train'"),
    "a field more": (ROW | {"reward": 1.0}, "unknown field `reward`"),
    "a field less": ({"phase": "search"}, "missing required field `candidate`"),
    "an episode again": (ROW | {"seed": 1, "weights": [1.0, 0.0]}, "repeats an episode: search 0, seed 1"),
    "a list": ([ROW], "Expected `object`"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_does_not_fit_is_named_with_its_file_and_line(name, tmp_path):
    content, words = WRONG[name]
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        folder.extend([(row(1), STEPS)])
    with (tmp_path / "episodes.jsonl").open("a") as file:
        file.write(json.dumps(content) + "\n")
    for act in (lambda: read_rows(tmp_path / "episodes.jsonl"), lambda: RunFolder(tmp_path, CONFIG, 4)):
        with pytest.raises(RunError) as caught:
            act()
        assert f"{tmp_path / 'episodes.jsonl'}, line 2" in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"schema_version": 1, "config": {', "truncated"),
        ('{"schema_version": 2, "config": {}, "versions": {}}', "schema_version 2, not 1"),
        ('{"config": {}, "versions": {}}', "has no schema_version: it is of no search"),
        ('{"schema_version": 1, "config": 3, "versions": {}}', "config: Expected `object`, got `int`"),
        (
            '{"schema_version": 1, "config": {}, "versions": {"torch": 2}}',
            r"versions\[\.\.\.\]: Expected `str`, got `int`",
        ),
        ('{"schema_version": 1, "config": {"x": NaN}, "versions": {}}', "malformed"),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_line(content, words, tmp_path):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        RunFolder(tmp_path, {}, 4)
    assert str(tmp_path / "manifest.json") in str(caught.value)


def test_a_target_of_a_stranger_that_is_no_name_is_a_difference_like_any(tmp_path):
    RunFolder(tmp_path, {"sampler": {"_target_": {}}}, 4).close()
    with pytest.raises(InputError, match="was started with device="):
        RunFolder(tmp_path, CONFIG, 4)


def test_another_version_of_a_package_does_not_add_to_a_table(tmp_path):
    RunFolder(tmp_path, CONFIG, 4).close()
    manifest = json.loads((tmp_path / "manifest.json").read_text())

    def folder(**changed):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"versions": manifest["versions"] | changed}))
        return RunFolder(tmp_path, CONFIG, 4)

    with folder(python="3.0", zarr="3.0", a_package_that_is_gone="1") as same:
        same.check_versions()
    with (
        folder(numpy="1.0") as other,
        pytest.raises(InputError, match=rf"numpy 1\.0, now {np.__version__} .*'numpy==1\.0'"),
    ):
        other.check_versions()


def test_a_number_that_is_not_finite_is_refused_before_it_is_written(tmp_path):
    with RunFolder(tmp_path, CONFIG, 4) as folder:
        with pytest.raises(RunError, match=r"the row of seed 3 holds a number that is not finite"):
            folder.extend([(Row("evaluate", 0, 3, (1.0,), False, float("nan"), 1), {})])
        with pytest.raises(RunError, match=r"summary\.json holds a number that is not finite"):
            folder.write_json("summary.json", {"score": float("inf")})
        assert not folder.rows
    assert not (tmp_path / "summary.json").exists()


def test_a_summary_of_an_earlier_version_is_read(tmp_path):
    path = random_search(tmp_path / "run", ["a", "b"], lambda _: 4, 4)
    summary = json.loads((path / "summary.json").read_text())
    older = {"epsilon" if key == "optimality_gap_ci95" else key: value for key, value in summary.items()}
    (path / "summary.json").write_text(json.dumps(older | {"schema_version": 1}))
    assert read_run(path).summary == summary | {"schema_version": 1}
