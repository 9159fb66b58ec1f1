"""Tiny policies in gpc's own format, so that whole commands run in seconds."""

import copy
import json
import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from gpc.policies.bundled import CARD, WEIGHTS, build
from gpc.policy.load import load_policy

os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

INPUTS = {"state": {"shape": [5], "offset": 256.0, "scale": 256.0, "angles": [4]}}
KEYPOINTS = {"keypoints": {"shape": [16], "offset": 256.0, "scale": 256.0}}
ACTIONS = {"horizon": 16, "names": ["x", "y"], "scale": [256.0] * 2, "offset": [256.0] * 2, "start": -1, "bound": 1.0}
TINY = {
    "tiny-noise": (INPUTS, {"type": "unet", "widths": [16, 32]}, {"type": "squaredcos", "steps": 100}, "noise"),
    "tiny-flow": (
        KEYPOINTS,
        {"type": "transformer", "width": 32, "depth": 1, "heads": 2},
        {"type": "flow"},
        "velocity",
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Set one thread for each test: robomimic's trainer raises the number, and two test processes share the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A folder of the user's as the current one; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def make_card(name, **changes):
    inputs, network, schedule, prediction = TINY[name]
    model = {"inputs": inputs, "n_obs_steps": 2, "network": network, "schedule": schedule, "prediction": prediction}
    return {"name": name, "summary": "random weights", "model": model, "actions": ACTIONS | changes}


def save_policy(folder, card, spoil=lambda weights: weights):
    torch.manual_seed(len(card["name"]))
    policy = build(card)
    for parameter in policy.module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(spoil(policy.module.state_dict()), folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card))
    return f"bundled:{folder}"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`loader:path` of a tiny noise model on state and of a tiny flow model on keypoints."""
    root = tmp_path_factory.mktemp("policies")
    return [save_policy(root / name, make_card(name)) for name in TINY]


@pytest.fixture(scope="session")
def parents(tiny):
    """The two tiny policies, loaded."""
    return [load_policy(source) for source in tiny]


@pytest.fixture
def spoiled(tmp_path):
    """Make a tiny policy with changed actions or weights: spoiled("tiny-flow", horizon=8) -> `loader:path`."""

    def make(name, spoil=lambda weights: weights, **changes):
        return save_policy(tmp_path / "spoiled", copy.deepcopy(make_card(name, **changes)), spoil)

    return make
