"""LeRobotDatasets as demonstrations: names, older versions and incomplete folders; nothing is requested."""

import importlib
import json
import re
import shlex
import shutil
import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

import gpc
from gpc.commands.experiment import demonstrations_for, denoising_error
from gpc.commands.rollout_setup import prepare
from gpc.demonstrations import read, write_lerobot, write_replay_buffer
from gpc.errors import InputError
from gpc.inert import Console
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.policy.names import stored_names
from gpc.policy.spec import ObservationSpec

HELD_OUT = Path(__file__).parent / "data" / "pusht-held-out.zarr.zip"
ENDS, STEPS = [7, 12, 25], 25
TASKS = ["push the T", "push the T", "pull the T"]
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": None},
    "observation.environment_state": {"dtype": "float32", "shape": (16,), "names": None},
    "observation.image": {"dtype": "image", "shape": (8, 6, 3), "names": ["height", "width", "channels"]},
    "action": {"dtype": "float32", "shape": (2,), "names": None},
}


def frames():
    rng = np.random.default_rng(0)
    return {
        key: rng.integers(0, 256, (STEPS, *feature["shape"]), np.uint8)
        if feature["dtype"] == "image"
        else rng.uniform(0, 512, (STEPS, *feature["shape"])).astype(np.float32)
        for key, feature in FEATURES.items()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A data set of three episodes, written by LeRobot."""
    root = tmp_path_factory.mktemp("datasets") / "pusht set"
    dataset = LeRobotDataset.create("gpc/test", fps=10, features=FEATURES, root=root, use_videos=False)
    for start, end, task in zip([0, *ENDS], ENDS, TASKS, strict=False):
        for i in range(start, end):
            dataset.add_frame({key: value[i] for key, value in frames().items()} | {"task": task})
        dataset.save_episode()
    dataset.finalize()
    return root


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / written.name)


@pytest.fixture(autouse=True)
def no_request(monkeypatch):
    """Any connection and any look-up of a host's name fails the test, though its error is caught."""
    calls = []

    def call(*arguments, **_):
        calls.append(arguments)
        raise OSError("no network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, call)
    monkeypatch.setattr(socket.socket, "connect", call)
    yield
    assert calls == []


def names(shapes, rename_map, folder="data", images=()):
    return partial(stored_names, ObservationSpec(shapes, 1, images), rename_map, str(folder))


def test_observations_have_the_environments_names(folder):
    """By `rename_map`, as for policies, or by the convention of names: LeRobot's prefix, "image" and "pixels"."""
    shapes = {"agent_pos": (2,), "keypoints": (16,), "pixels": (8, 6, 3), "task": (1024,)}
    found = read(folder, names(shapes, {"observation.environment_state": "keypoints"}, images=["pixels"]))
    wanted = dict(zip(shapes, ["state", "environment_state", "image"], strict=False))
    for key, name in wanted.items():
        assert np.array_equal(found.observations[key], frames()[f"observation.{name}"])
    assert np.array_equal(found.actions, frames()["action"])
    assert found.episode_ends.tolist() == ENDS
    assert set(found.observations) == set(shapes)
    assert set(read(folder).observations) == {f"observation.{name}" for name in wanted.values()}


def test_a_missing_observation_is_said_with_the_map_to_write(folder):
    with pytest.raises(InputError, match=r"has no 'goal'; it has observation.env.*'rename_map=\{ITS NAME: goal\}'"):
        read(folder, names({"goal": (3,)}, {}, folder))
    with pytest.raises(InputError, match="has no 'state'"):  # (5,), not the position (2,) of the same name
        read(folder, names({"state": (5,)}, {}, folder))


def test_an_instruction_is_that_of_the_episode(folder):
    found = read(folder, ["task"])
    assert list(found.observations["task"]) == [
        task for task, n in zip(TASKS, np.diff(ENDS, prepend=0), strict=True) for _ in range(n)
    ]
    spec = ObservationSpec({"task": (1024,)}, 1)
    row = spec.read({"task": found.observations["task"][-1:, None]})["task"][0, 0].numpy()
    assert bytes(row).rstrip(b"\0") == b"pull the T"


def as_version_2_1(folder):
    """Rewrite a data set in LeRobot's format 2.1: a file an episode, and lines of JSON."""
    data = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("data/*/*.parquet"))])
    tasks = pd.read_parquet(folder / "meta/tasks.parquet")
    episodes = pd.concat([pd.read_parquet(path) for path in sorted(folder.glob("meta/episodes/*/*.parquet"))])
    info = json.loads((folder / "meta/info.json").read_text())
    for name in ("data", "meta"):
        shutil.rmtree(folder / name)
    (folder / "data/chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    for index, steps in data.groupby("episode_index"):
        steps.to_parquet(folder / f"data/chunk-000/episode_{index:06d}.parquet")
    for key in ("data_files_size_in_mb", "video_files_size_in_mb"):
        info.pop(key, None)
    info |= {
        "codebase_version": "v2.1",
        "total_chunks": 1,
        "total_videos": 0,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": None,
    }
    (folder / "meta/info.json").write_text(json.dumps(info))
    lines = {
        "tasks": [{"task_index": int(row.task_index), "task": task} for task, row in tasks.iterrows()],
        "episodes": [
            {"episode_index": int(e.episode_index), "tasks": list(e.tasks), "length": int(e.length)}
            for e in episodes.itertuples()
        ],
        "episodes_stats": [
            {"episode_index": int(episode["episode_index"]), "stats": _statistics(episode)}
            for _, episode in episodes.iterrows()
        ],
    }
    for name, rows in lines.items():
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _statistics(episode):
    found = {}
    for name, value in episode.items():
        if name.startswith("stats/"):
            _, key, statistic = name.split("/")
            found.setdefault(key, {})[statistic] = plain(value)
    return found


def plain(value):
    return [plain(part) for part in value] if isinstance(value, np.ndarray | list) else float(value)


def test_version_2_1_is_refused_with_the_command_that_converts_it(folder, monkeypatch):
    as_version_2_1(folder)
    with pytest.raises(InputError, match=r"is a LeRobotDataset of version v2\.1; convert it in place by") as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    python, m, module, *arguments = shlex.split(re.search("`(.*)`", str(caught.value))[1])
    assert f"{python} {m}" == "python -m"
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    assert options.pop("push-to-hub") == "false"
    convert = importlib.import_module(module).convert_dataset
    convert(options.pop("repo-id"), root=options.pop("root"), push_to_hub=False, **options)
    found = read(folder)
    assert np.array_equal(found.observations["observation.state"], frames()["observation.state"])
    assert np.array_equal(found.observations["observation.image"], frames()["observation.image"])
    assert found.episode_ends.tolist() == ENDS


def edit(**fields):
    def do(folder):
        path = folder / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return do


def remove(pattern):
    def do(folder):
        for path in folder.glob(pattern):
            path.unlink()

    return do


def cut(pattern):
    def do(folder):
        for path in folder.glob(pattern):
            path.write_bytes(path.read_bytes()[:-100])

    return do


def half(folder):
    path = next(folder.glob("data/*/*.parquet"))
    pd.read_parquet(path).head(12).to_parquet(path)


def version_1(folder):
    (folder / "meta").rename(folder / "meta_data")


def with_a_video(folder):
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features["observation.image"]["dtype"] = "video"
    edit(features=features, video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")(folder)
    for path in folder.glob("meta/episodes/*/*.parquet"):
        episodes = pd.read_parquet(path)
        episodes["videos/observation.image/chunk_index"] = 0
        episodes["videos/observation.image/file_index"] = 3
        episodes.to_parquet(path)


BROKEN = {
    "version 1": (version_1, "is a LeRobotDataset of version v1; record it again"),
    "version 2.0": (edit(codebase_version="v2.0"), r"of version v2\.0; convert it to v2\.1 with LeRobot 0\.3 first"),
    "a later version": (edit(codebase_version="v4.0"), r"of version v4\.0; gpc reads v3\.0 \(LeRobot 0\.4 to 0\.6\)"),
    "no version": (edit(codebase_version=None), r"info\.json.*codebase_version"),
    "no JSON": (lambda folder: (folder / "meta/info.json").write_text("{"), r"info\.json"),
    "no actions": (edit(features={"observation.state": FEATURES["observation.state"]}), "without 'action'"),
    "no tasks": (remove("meta/tasks.parquet"), r"incomplete LeRobotDataset \(meta/tasks\.parquet is missing\)"),
    "no episodes": (remove("meta/episodes/*/*.parquet"), r"incomplete .*\(meta/episodes/.* is missing\)"),
    "no data": (remove("data/*/*.parquet"), r"incomplete .*\(data/.* is missing\); copy or fetch the whole folder again"),
    "half of the data": (half, r"incomplete .*\(data has 12 of 25 steps\)"),
    "fewer episodes": (edit(total_episodes=4), r"incomplete .*\(meta/episodes has 3 of 4 episodes\)"),
    "data that are cut": (cut("data/*/*.parquet"), "cannot be read"),
    "no videos": (with_a_video, r"\(videos/observation\.image/chunk-000/file-003\.mp4 is missing, 1 of 2 files\)"),
    "other paths": (edit(data_path="../{chunk_index}/{file_index}"), "names other paths than LeRobot writes"),
    "a key that is a path": (edit(features=FEATURES | {"../x": FEATURES["action"]}), "names other paths than LeRobot"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_is_old_or_incomplete_is_refused_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_search_has_the_same_prior_from_a_lerobot_dataset_as_from_a_replay_buffer(tmp_path):
    """The data set has LeRobot's names of PushT, which `rename_map` maps for policies, too."""
    keys = {"observation.state": "agent_pos", "observation.environment_state": "keypoints", "observation.all": "state"}
    composition = gpc.compose([gpc.load_policy(name) for name in ("pusht-diffusion", "pusht-flow")], [0.5, 0.5])
    setup = prepare(composition, EnvSpec("pusht", rename_map=keys), Sampling())
    some = read(HELD_OUT, list(keys.values())).select([0, 1])
    write_replay_buffer(tmp_path / "some.zarr", some)
    theirs = {name.removeprefix("observation."): some.observations[key] for name, key in keys.items()}
    write_lerobot(tmp_path / "lerobot", replace(some, observations=theirs), 10, "push the T")
    ours, found = (
        denoising_error(setup.policy, setup.actor.sampling, demonstrations_for(setup, tmp_path / name), Console())
        for name in ("some.zarr", "lerobot")
    )
    assert (found.windows, len(found.gram)) == (ours.windows, len(ours.gram))
    np.testing.assert_allclose(found.gram, ours.gram, rtol=1e-5)
