import numpy as np
import pytest
import torch
import train
from recipes import HELD_OUT
from safetensors.torch import load_file

from gpc.policy.load import load_policy

EPISODES, STEPS = 206, 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Demonstrations in the real file's layout, of random numbers."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    n = EPISODES * STEPS
    ends = STEPS * np.arange(1, EPISODES + 1)
    state, action = rng.uniform(0, 512, (n, 5)).astype(np.float32), rng.uniform(0, 512, (n, 2)).astype(np.float32)
    np.savez(folder / "pusht_v7_206ep_lowdim.npz", state=state, action=action, episode_ends=ends)
    return folder


def run(data, folder, *more):
    options = ["--data", str(data), "--out", str(folder), "--export", str(folder), "--steps", "4", "--batch", "8"]
    train.main(["pusht-beso", *options, "--every", "2", *more])
    return load_file(folder / "pusht-beso" / "weights.safetensors")


def test_an_interrupted_training_ends_with_the_same_weights(data, tmp_path, monkeypatch):
    straight = run(data, tmp_path / "straight")
    update = train.Trainer.update

    def interrupted(self, *batches):
        if self.step == 3:
            raise KeyboardInterrupt
        return update(self, *batches)

    monkeypatch.setattr(train.Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "broken")
    monkeypatch.setattr(train.Trainer, "update", update)
    resumed = run(data, tmp_path / "broken")
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    other = run(data, tmp_path / "other", "--seed", "1")
    assert not all(torch.equal(straight[key], other[key]) for key in straight)


def test_another_setting_does_not_go_on_from_the_checkpoint(data, tmp_path):
    run(data, tmp_path)
    with pytest.raises(SystemExit, match="started with --batch 8"):
        run(data, tmp_path, "--batch", "16")


def test_what_training_exports_is_a_policy_with_a_card(data, tmp_path):
    run(data, tmp_path)
    policy = load_policy(f"bundled:{tmp_path / 'pusht-beso'}")
    assert policy.card["training"]["steps"] == 4
    assert policy.card["training"]["held_out_episodes"] == HELD_OUT
    assert policy.card["license"] == "MIT"


def test_windows_repeat_the_edges_and_stay_in_their_episode():
    observed, acted = train.windows(np.array([10, 20]), [1], horizon=16, past=2)
    assert observed[0].tolist() == [10, 10]
    assert acted[0].tolist() == [10, *range(10, 20), *[19] * 5]
    assert int(acted.min()) == 10
    assert int(acted.max()) == 19
