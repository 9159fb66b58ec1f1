"""Forms in which LeRobot checkpoints come: of older versions, wrapped, in parts, as adapters, in a training's folder."""

import importlib
import json
import re
import shlex
import shutil
from importlib.util import find_spec

import pytest
import torch
from huggingface_hub import ModelCard, save_torch_state_dict
from lerobot_checkpoints import save, statistics
from safetensors.torch import load_file, save_file
from test_from_lerobot import observe

import gpc
from gpc.errors import InputError

NEWER = find_spec("lerobot.common")  # LeRobot 0.6
lerobot_training = importlib.import_module("lerobot.common.train_utils" if NEWER else "lerobot.utils.train_utils")
KEYS = ("observation.state", "observation.image")
MODES = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(tmp_path_factory.mktemp("files") / "run", keys=KEYS, normalization_mapping=MODES)[0]


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "run")


def denoised(folder):
    """What the policy of a folder makes of one x and observation."""
    policy = gpc.load_policy(f"lerobot:{folder}")
    x = torch.randn(3, *policy.actions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return policy.actions.decode(policy.condition(observe(policy))(x, torch.tensor(1.0, dtype=torch.float64)))


def edit(folder, change):
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def before_0_4(folder):
    """Put the statistics among the weights, as LeRobot 0.3 did, and leave the processors out."""
    buffers = {}
    for key, values in statistics(KEYS).items():
        modules = ("normalize_targets", "unnormalize_outputs") if key == "action" else ("normalize_inputs",)
        for module in modules:
            for name in ("mean", "std") if "image" in key else ("min", "max"):
                buffers[f"{module}.buffer_{key.replace('.', '_')}.{name}"] = values[name].clone()
    edit(folder, lambda weights: weights | buffers)
    for file in folder.glob("policy_*"):
        file.unlink()


def test_a_checkpoint_before_0_4_is_refused_with_the_command_that_converts_it(checkpoint, folder, monkeypatch):
    before_0_4(folder)
    with pytest.raises(InputError, match=r"was saved by LeRobot before 0\.4") as caught:
        gpc.load_policy(f"lerobot:{folder}")
    assert "\n" not in str(caught.value)
    python, m, module, *arguments = shlex.split(re.search("`(.*)`", str(caught.value))[1])
    assert f"{python} {m}" == "python -m"
    monkeypatch.setattr("sys.argv", [module, *arguments])
    monkeypatch.setattr(ModelCard, "validate", lambda self: None)  # it asks the hub
    importlib.import_module(module).main()
    assert f"load {folder.name}_migrated" in str(caught.value)
    assert torch.equal(denoised(folder.with_name(f"{folder.name}_migrated")), denoised(checkpoint))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("diffusion.unet.", "diffusion.unet._orig_mod."),  # LeRobot's compile_model=true
    ],
)
def test_names_of_wrapped_networks_are_those_of_the_network(checkpoint, folder, wrap):
    edit(folder, lambda weights: {wrap(name): value for name, value in weights.items()})
    assert torch.equal(denoised(folder), denoised(checkpoint))


def test_weights_with_and_without_a_prefix_are_refused(folder):
    edit(folder, lambda weights: weights | {f"module.{name}": value.clone() for name, value in weights.items()})
    with pytest.raises(InputError, match=r"holds weights twice, with and without the prefix 'module\.'"):
        gpc.load_policy(f"lerobot:{folder}")


def test_weights_that_do_not_fit_are_named(folder):
    def spoil(weights):
        first, *rest = sorted(name for name in weights if name.startswith("diffusion.unet.final_conv"))
        del weights[first]
        return weights | {rest[0]: weights[rest[0]][:1], "extra.a": torch.zeros(1), "extra.b": torch.zeros(1)}

    edit(folder, spoil)
    with pytest.raises(InputError) as caught:
        gpc.load_policy(f"lerobot:{folder}")
    assert str(caught.value) == (
        f"{folder / 'config.json'} describes a network that its weights do not fit: 1 missing (diffusion.unet.final_conv.0."
        "block.0.bias), 2 unexpected (extra.a, extra.b), 1 of another shape (diffusion.unet.final_conv.0.block.0.weight: "
        "(1, 16, 3) instead of (16, 16, 3))"
    )


def test_weights_in_parts_are_those_in_one_file(checkpoint, folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_torch_state_dict(weights, folder, max_shard_size=2**22)
    parts = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(parts) > 2
    assert (folder / "model.safetensors.index.json").is_file()
    assert torch.equal(denoised(folder), denoised(checkpoint))
    whole = gpc.load_policy(f"lerobot:{folder}").fingerprint
    save_file({name: value + 1 for name, value in load_file(parts[1]).items()}, parts[1])
    assert gpc.load_policy(f"lerobot:{folder}").fingerprint != whole
    parts[1].unlink()
    with pytest.raises(InputError, match=rf"{parts[1].name} is missing"):
        gpc.load_policy(f"lerobot:{folder}")


def test_an_adapter_is_refused_with_what_merges_it(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "a/base"}))
    with pytest.raises(InputError, match=r"holds an adapter .*merge them with peft's `merge_and_unload`"):
        gpc.load_policy(f"lerobot:{folder}")


@pytest.fixture
def training(folder, tmp_path):
    """The folder of a training that saved two checkpoints, with LeRobot's own names and link."""
    root = tmp_path / "train"
    for step in (9, 10):
        saved = lerobot_training.get_step_checkpoint_dir(root, 100, step)
        shutil.copytree(folder, saved / "pretrained_model")
        edit(saved / "pretrained_model", lambda weights, step=step: {k: v + step for k, v in weights.items()})
        lerobot_training.update_last_checkpoint(saved)
    return root


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/last"])
@pytest.mark.parametrize("linked", [True, False])
def test_the_folder_of_a_training_is_its_last_checkpoint(training, inside, linked, capsys):
    steps = sorted((training / "checkpoints").glob("0*"))
    last = steps[1] / "pretrained_model"
    if not linked:  # archives and copies lose the link
        (training / "checkpoints" / "last").unlink()
        inside = inside.replace("last", steps[1].name)
    policy = gpc.load_policy(f"lerobot:{training / inside}")
    said = capsys.readouterr().err
    assert policy.fingerprint == gpc.load_policy(f"lerobot:{last}").fingerprint
    assert policy.fingerprint != gpc.load_policy(f"lerobot:{steps[0]}").fingerprint
    assert policy.name == "train"
    assert (f"is a training; its last checkpoint is used, {last}" in said) == (inside in ("", "checkpoints"))
