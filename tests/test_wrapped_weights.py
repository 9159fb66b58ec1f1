"""Weights of DataParallel and torch.compile, and weights that do not fit, in the pickled checkpoints of all codebases."""

import json
import re
from pathlib import Path

import beso_checkpoints
import diffusion_policy_checkpoints
import pytest
import torch
from test_from_robomimic import save as save_robomimic

import gpc
from gpc.errors import InputError

BESO = json.loads((Path(__file__).parent / "data" / "beso.json").read_text())


def robomimic(folder, change):
    path = save_robomimic(folder / "x.pth")
    content = torch.load(path, weights_only=False)
    for part in ("nets", "ema"):
        content["model"][part] = change(content["model"][part])
    torch.save(content, path)
    return path


def diffusion_policy(folder, change):
    content = diffusion_policy_checkpoints.payload("unet, camera")
    states = {name: change(state) for name, state in content["state_dicts"].items()}
    return diffusion_policy_checkpoints.save(content | {"state_dicts": states}, folder / "x.ckpt")


def beso(folder, change):
    path = beso_checkpoints.save(folder / "x", "kitchen", BESO["kitchen"]) / "model_state_dict.pth"
    torch.save(change(torch.load(path, weights_only=True)), path)
    return path.parent


CODEBASES = {"robomimic": robomimic, "diffusion_policy": diffusion_policy, "beso": beso}


def denoised(source):
    policy = gpc.load_policy(source)
    generator = torch.Generator().manual_seed(0)
    reads = policy.observations
    observation = {
        key: torch.randint(0, 256, (2, reads.n_obs_steps, *shape), generator=generator, dtype=torch.uint8)
        if key in reads.images
        else torch.rand(2, reads.n_obs_steps, *shape, generator=generator)
        for key, shape in reads.shapes.items()
    }
    x = torch.randn(2, *policy.actions.shape, generator=generator, dtype=torch.float64)
    return policy.condition(observation)(x, torch.tensor(0.5, dtype=torch.float64))


@pytest.fixture(scope="module", params=CODEBASES)
def codebase(request, tmp_path_factory):
    """Loader, writer, and what the policy makes of one x with its weights as they are."""
    write = CODEBASES[request.param]
    plain = write(tmp_path_factory.mktemp("plain"), lambda state: state)
    return request.param, write, denoised(f"{request.param}:{plain}")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: re.sub(r"(noise_pred_net|model|blocks)\.", r"\1.module.", name, count=1),  # a part of the network
    ],
    ids=["module", "compiled", "inner"],
)
def test_prefixes_of_wrappers_change_nothing(codebase, tmp_path, wrap):
    loader, write, wanted = codebase
    changed = []

    def change(state):
        names = {name: wrap(name) for name in state}
        changed.extend(name for name, new in names.items() if name != new)
        return {names[name]: value for name, value in state.items()}

    assert torch.equal(denoised(f"{loader}:{write(tmp_path, change)}"), wanted)
    assert changed


def test_weights_that_do_not_fit_are_named(codebase, tmp_path):
    loader, write, _ = codebase
    gone = []

    def change(state):
        biases = [name for name in state if name.endswith("bias") and "normalizer" not in name]
        gone.extend(biases[-4:])
        return {name: value for name, value in state.items() if name not in biases[-4:]}

    with pytest.raises(InputError, match="describes a network that its weights do not fit: 4 missing") as caught:
        gpc.load_policy(f"{loader}:{write(tmp_path, change)}")
    assert "\n" not in str(caught.value)
    named = re.search(r"4 missing \((.*), (.*), (.*), \.\.\.\)", str(caught.value)).groups()
    assert all(any(name.endswith(part) for name in gone) for part in named)
