import argparse
from dataclasses import replace

import numpy as np
import pytest
import torch
import train
from recipes import HELD_OUT, RECIPES
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gpc.demonstrations import Demonstrations
from gpc.inference.modules import module_on
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
    return load_file(next(folder.glob("pusht-beso*/weights.safetensors")))


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


def test_parts_of_the_demonstrations_share_none_and_have_a_name_of_their_own(data, tmp_path):
    trained = range(1, 12)
    parts = [train.Part.parse(f"{number}/3").of(trained) for number in (1, 2, 3)]
    assert sorted(episode for part in parts for episode in part) == [*trained]
    assert {len(part) for part in parts} <= {3, 4}
    run(data, tmp_path, "--demonstrations", "2/3")
    card = load_policy(f"bundled:{tmp_path / 'pusht-beso-2of3'}").card
    assert card["name"] == "pusht-beso-2of3"
    assert card["training"]["demonstrations"] == "2/3"
    assert card["training"]["trained_episodes"] == 63
    with pytest.raises(SystemExit):
        run(data, tmp_path, "--demonstrations", "4/3")


def test_windows_repeat_the_edges_and_stay_in_their_episode():
    observed, acted = train.windows(np.array([10, 20]), [1], horizon=16, past=2)
    assert observed[0].tolist() == [10, 10]
    assert acted[0].tolist() == [10, *range(10, 20), *[19] * 5]
    assert int(acted.min()) == 10
    assert int(acted.max()) == 19


def trainer_of(name, monkeypatch, tmp_path):
    """A trainer of two episodes of random numbers."""
    inputs = RECIPES[name].model["inputs"]

    def load(folder, keys):
        rng = np.random.default_rng(0)
        observations = {
            key: rng.integers(0, 256, (2 * STEPS, *inputs[key]["shape"])).astype(
                np.uint8 if inputs[key].get("image") else np.float64
            )
            for key in keys
        }
        dim = len(RECIPES[name].actions["scale"])
        return Demonstrations(observations, rng.normal(size=(2 * STEPS, dim)), np.array([STEPS, 2 * STEPS]))

    task = replace(RECIPES[name].task, load=load, held_out=lambda n: [1])
    monkeypatch.setitem(train.RECIPES, name, replace(RECIPES[name], task=task))
    settings = {"steps": 10, "batch": 4, "lr": 5e-4, "seed": 0, "bf16": False, "device": torch.device("cpu")}
    settings["demonstrations"] = train.Part(1, 1)
    return train.Trainer(name, argparse.Namespace(**settings, data=tmp_path, out=tmp_path))


class NothingFromTheHost(TorchDispatchMode):
    """Raises where a card would wait for the host, as a recording cannot."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = {value.device.type for value in tree_leaves(out) if isinstance(value, torch.Tensor)}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if "cuda" in there and any(value.device.type == "cpu" for value in given):
            raise AssertionError(f"{func} takes a tensor from the host")
        return out


@pytest.mark.parametrize("name", ["pusht-diffusion", "pusht-flow", "pusht-beso", "pusht-image", "lift-points"])
def test_a_step_on_a_card_waits_for_nothing(name, monkeypatch, tmp_path):
    trainer, card = trainer_of(name, monkeypatch, tmp_path), torch.device("cuda", 0)

    def backward(loss):  # autograd itself needs a card
        for weight in trainer.module.parameters():
            weight.grad = torch.ones_like(weight)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    windows = trainer.batches(trainer.trained)
    draw = trainer.draw(torch.arange(4), trainer.generator, augment=True)
    assert bool(draw.offsets) == (name == "pusht-image")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer.device, trainer.schedule = card, train.schedule_on(trainer.policy.schedule, card)
        trainer.module, trainer.average = (module_on(m, card) for m in (trainer.module, trainer.average))
        trainer.module.requires_grad_()
        trainer.optimizer = torch.optim.AdamW(trainer.module.parameters(), capturable=True)
        data = trainer.observations, trainer.actions, windows, draw, torch.tensor(1e-4), torch.tensor(0.1)
        trainer.observations, trainer.actions, windows, draw, *numbers = tree_map(lambda value: value.to(card), data)
        with NothingFromTheHost():
            loss = trainer.make_step(*windows, draw, *numbers)
        assert {value.device.type for value in [loss, *trainer.tensors()]} == {"cuda"}


class StandIn:
    """Records as a card does: three runs, of which nothing is kept."""

    def __init__(self, device):
        pass

    def record(self, step):
        for _ in range(3):
            step()
        return step


def test_a_recorded_step_is_the_step_and_recording_makes_none(monkeypatch, tmp_path):
    plain, recorded = (trainer_of("pusht-beso", monkeypatch, tmp_path) for _ in range(2))
    windows = plain.batches(plain.trained)
    for _ in range(4):
        plain.update(*windows)
    monkeypatch.setattr(train, "is_recorded", lambda device: True)
    monkeypatch.setattr(train, "Card", StandIn)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    for _ in range(4):
        recorded.update(*windows)
    assert recorded.recorded is not None
    for one, other in zip(plain.tensors(), recorded.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_recorded_step_that_differs_ends_the_training(monkeypatch, tmp_path):
    class Spoilt(StandIn):
        def record(self, step):
            return lambda: trainer.module.network.tokens.weight.data.add_(1e-4)

    trainer = trainer_of("pusht-beso", monkeypatch, tmp_path)
    monkeypatch.setattr(train, "is_recorded", lambda device: True)
    monkeypatch.setattr(train, "Card", Spoilt)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    with pytest.raises(SystemExit, match="the recorded step differs from the step itself by"):
        trainer.update(*trainer.batches(trainer.trained))
