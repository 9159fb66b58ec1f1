"""Stores of demonstrations: written and read back, read by the libraries whose layouts they are, and collected."""

import json
import os
import signal
import subprocess
import sys
import time

import collect
import h5py
import numpy as np
import pytest
import zarr

from gpc.demonstrations import Demonstrations, read, write_replay_buffer, write_robomimic
from gpc.errors import InputError

ENDS = np.array([7, 12, 25])
ENVIRONMENT = {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": {"robots": ["Panda"]}}


@pytest.fixture(scope="module")
def demonstrations():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (25, 8, 6, 3), np.uint8)
    return Demonstrations(
        {"object": rng.normal(size=(25, 10)), "agentview_image": images}, rng.uniform(-1, 1, (25, 7)), ENDS
    )


@pytest.fixture
def hdf5(demonstrations, tmp_path):
    rewards, notes = np.eye(1, 25, 24)[0], [{"seed": seed, "side": "left"} for seed in (3, 4, 6)]
    write_robomimic(tmp_path / "a.hdf5", demonstrations, rewards, ENVIRONMENT, notes, held_out=[1])
    return tmp_path / "a.hdf5"


@pytest.fixture
def buffer(demonstrations, tmp_path):
    write_replay_buffer(tmp_path / "a.zarr", demonstrations)
    return tmp_path / "a.zarr"


def same(a, b):
    assert set(a.observations) == set(b.observations)
    assert all(np.array_equal(a.observations[key], b.observations[key]) for key in a.observations)
    assert all(a.observations[key].dtype == b.observations[key].dtype for key in a.observations)
    assert np.array_equal(a.actions, b.actions)
    assert np.array_equal(a.episode_ends, b.episode_ends)


def test_robomimic_file_and_replay_buffer_give_back_what_was_written(demonstrations, hdf5, buffer, tmp_path):
    same(read(hdf5), demonstrations)
    same(read(buffer), demonstrations)
    subprocess.run([sys.executable, "-P", "-m", "zipfile", "-c", "../a.zarr.zip", "."], cwd=buffer, check=True)
    same(read(tmp_path / "a.zarr.zip"), demonstrations)
    assert set(read(hdf5, ["object"]).observations) == set(read(buffer, ["object"]).observations) == {"object"}


def test_more_than_ten_episodes_keep_their_order(tmp_path):
    actions = np.arange(36.0).reshape(12, 3)
    written = Demonstrations({"object": actions}, actions, np.arange(1, 13))
    write_robomimic(tmp_path / "a.hdf5", written, np.zeros(12), ENVIRONMENT, [{}] * 12)
    same(read(tmp_path / "a.hdf5"), written)


def test_a_replay_buffer_is_zarr_of_format_2(buffer):
    root = zarr.open_group(buffer, mode="r")
    assert (buffer / ".zgroup").exists()
    assert root.metadata.zarr_format == 2
    assert list(root["meta/episode_ends"][:]) == list(ENDS)
    assert set(root["data"]) == {"object", "agentview_image", "action"}


def test_robomimic_reads_its_file(demonstrations, hdf5):
    import robomimic.utils.file_utils as file_utils
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.utils.dataset import SequenceDataset

    assert file_utils.get_env_metadata_from_dataset(str(hdf5)) == ENVIRONMENT
    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["object"], "rgb": ["agentview_image"]}})
    settings = {
        "obs_keys": ["object", "agentview_image"],
        "action_keys": ["actions"],
        "dataset_keys": ["actions", "rewards", "dones"],
        "action_config": {"actions": {"normalization": None}},
        "load_next_obs": False,
    }
    trained = SequenceDataset(str(hdf5), **settings, seq_length=3, filter_by_attribute="train")
    held_out = SequenceDataset(str(hdf5), **settings, filter_by_attribute="valid")
    assert (len(trained), len(held_out)) == (7 + 13, 5)
    last = trained[17]
    assert np.allclose(last["actions"], demonstrations.actions[22:25])
    assert np.allclose(last["obs"]["object"], demonstrations.observations["object"][22:25])
    assert np.array_equal(last["obs"]["agentview_image"], demonstrations.observations["agentview_image"][22:25])
    assert last["dones"].tolist() == [0, 0, 1]
    assert last["rewards"].tolist() == [0, 0, 1]
    with h5py.File(hdf5) as file:
        assert file["data"].attrs["total"] == 25
        assert [file[f"data/demo_{i}"].attrs["num_samples"] for i in range(3)] == [7, 5, 13]
        assert file["data/demo_2"].attrs["seed"] == 6


def test_robomimic_trains_on_its_file(hdf5, tmp_path):
    import torch
    from robomimic.config import config_factory
    from robomimic.scripts.train import train

    config = config_factory("bc")
    with config.unlocked():
        config.train.data, config.train.output_dir = [{"path": str(hdf5)}], str(tmp_path / "run")
        config.train.hdf5_filter_key, config.train.hdf5_validation_filter_key = "train", "valid"
        config.train.batch_size, config.train.num_epochs, config.train.num_data_workers = 4, 1, 0
        config.experiment.validate, config.experiment.rollout.enabled = True, False
        config.experiment.epoch_every_n_steps = config.experiment.validation_epoch_every_n_steps = 1
        config.experiment.logging.log_tb = config.experiment.logging.terminal_output_to_txt = False
        config.experiment.save.every_n_epochs = 1
        config.observation.modalities.obs.low_dim, config.algo.actor_layer_dims = ["object"], [8]
    train(config, torch.device("cpu"))
    assert list((tmp_path / "run").rglob("model_epoch_1*.pth"))


def test_a_lerobot_dataset_is_read(demonstrations, tmp_path):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = {"observation.state": "object", "observation.images.top": "agentview_image"}
    features = {
        "observation.state": {"dtype": "float32", "shape": (10,), "names": None},
        "observation.images.top": {"dtype": "image", "shape": (8, 6, 3), "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": (7,), "names": None},
    }
    root = tmp_path / "lerobot"
    dataset = LeRobotDataset.create("gpc/test", fps=20, features=features, root=root, use_videos=False)
    frames = {key: demonstrations.observations[name] for key, name in names.items()} | {
        "action": demonstrations.actions
    }
    for steps in demonstrations.episodes:
        for i in range(steps.start, steps.stop):
            frame = {
                key: value[i] if value.dtype == np.uint8 else value[i].astype(np.float32)
                for key, value in frames.items()
            }
            dataset.add_frame(frame | {"task": "lift"})
        dataset.save_episode()
    dataset.finalize()
    found = read(root)
    assert np.array_equal(found.episode_ends, ENDS)
    assert np.array_equal(found.actions, demonstrations.actions.astype(np.float32))
    assert np.array_equal(found.observations["observation.state"], frames["observation.state"].astype(np.float32))
    assert np.array_equal(found.observations["observation.images.top"], frames["observation.images.top"])
    assert set(read(root, ["observation.state"]).observations) == {"observation.state"}
    for part in root.glob("data/**/*.parquet"):
        part.unlink()
    with pytest.raises(InputError, match="nothing is fetched"):
        read(root)


def test_bad_stores_are_refused_by_name(hdf5, buffer, tmp_path):
    with pytest.raises(InputError, match=r"b\.hdf5 does not exist"):
        read(tmp_path / "b.hdf5")
    for path in (hdf5, buffer):
        with pytest.raises(InputError, match="has no 'pixels'; it has agentview_image, object"):
            read(path, ["object", "pixels"])
    (tmp_path / "text.hdf5").write_text("no")
    (tmp_path / "cut.hdf5").write_bytes(hdf5.read_bytes()[:2000])
    h5py.File(tmp_path / "empty.hdf5", "w").close()
    for name in ("text", "cut", "empty"):
        with pytest.raises(InputError, match=f"{name}.hdf5 is not robomimic's HDF5"):
            read(tmp_path / f"{name}.hdf5")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.zip").write_text("no")
    for name in ("folder", "text.zip"):
        with pytest.raises(InputError, match=f"{name} is neither a zarr replay buffer nor a LeRobotDataset"):
            read(tmp_path / name)


@pytest.mark.parametrize("ends", [[], [25, 12], [12, 24], [0, 25]])
def test_episode_ends_that_do_not_divide_the_steps_are_refused(ends):
    with pytest.raises(InputError, match="do not divide 25 actions"):
        Demonstrations({}, np.zeros((25, 2)), np.array(ends, int))


def test_an_observation_of_another_length_is_refused():
    with pytest.raises(InputError, match="'object' has 24 steps, the actions have 25"):
        Demonstrations({"object": np.zeros((24, 2))}, np.zeros((25, 2)), ENDS)


def command(folder, workers):
    options = ["--task", "lift", "--episodes", "3", "--seed", "20", "--out", str(folder), "--workers", str(workers)]
    return [sys.executable, collect.__file__, *options]


def test_a_killed_collection_goes_on_and_gives_what_an_undisturbed_one_gives(tmp_path):
    """The undisturbed one is played here, episode after episode; the other by workers that are killed."""
    killed = subprocess.Popen(command(tmp_path, 2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    episodes = tmp_path / "lift.episodes"
    while not list(episodes.glob("*.npz")) and killed.poll() is None:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)  # ends when the workers, who hold the pipe, have ended too
    assert not (tmp_path / "lift.hdf5").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in episodes.glob("*.npz")}
    subprocess.run(command(tmp_path, 1), check=True, capture_output=True)
    assert finished
    assert all((episodes / name).stat().st_mtime_ns == when for name, when in finished.items())

    files = [collect.play("lift", collect.LOW_DIM, tmp_path, seed) for seed in range(20, 23)]
    undisturbed = [dict(np.load(file)) for file in files]
    found = read(tmp_path / "lift.hdf5")
    same(found, read(tmp_path / "lift.zarr"))
    assert np.array_equal(found.actions, np.concatenate([episode["actions"] for episode in undisturbed]))
    for key, value in found.observations.items():
        assert np.array_equal(value, np.concatenate([episode[f"obs/{key}"] for episode in undisturbed]))
    report = json.loads((tmp_path / "lift.json").read_text())
    assert (report["tried"], report["kept"], report["seeds"]) == (3, 3, [20, 22])
    assert sum(mode["kept"] for mode in report["modes"]["side"].values()) == 3


def test_a_folder_of_another_expert_is_not_gone_on_with(tmp_path):
    folder = tmp_path / "lift.episodes"
    collect.check_folder(folder, {"task": "lift", "expert": "a"})
    collect.check_folder(folder, {"task": "lift", "expert": "a"})
    with pytest.raises(InputError, match="was started with expert=a, now it is b"):
        collect.check_folder(folder, {"task": "lift", "expert": "b"})


def test_robomimic_builds_the_simulator_from_what_is_collected():
    import robomimic.utils.env_utils as env_utils
    import robomimic.utils.obs_utils as obs_utils

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": list(collect.LOW_DIM), "rgb": []}})
    metadata = {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": dict(collect.settings())}
    theirs = env_utils.create_env_from_metadata(metadata, render=False, render_offscreen=False, use_image_obs=False)
    frame, ours = theirs.reset(), collect.environment("lift", collect.LOW_DIM)
    assert all(frame[key].shape == ours.observation_space[key].shape for key in collect.LOW_DIM)
    assert theirs.action_dimension == 7
