"""Policies of one name are told apart by the folder of their training, and numbered if that is equal."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import make_card, save_policy
from models import FixedPolicy, Gaussian

import gpc
from gpc.commands.comparison import _named_apart
from gpc.commands.config import load_config
from gpc.commands.setup import compose_from, load_policies, setup_of
from gpc.composition.composed import as_composition
from gpc.inert import Console
from gpc.policy.adapt import distinct


@dataclass(frozen=True)
class Stored(FixedPolicy):
    """A policy that was read from a folder."""

    folder: Path | None = None


def stored(file):
    path = Path(file)
    return Stored(Gaussian(), name=path.stem, folder=path.parent, fingerprint=file)


def names(*files):
    return [policy.name for policy in distinct([stored(file) for file in files])]


DP = "data/outputs/2023.01.16/20.20.06_train_diffusion_unet_lowdim_pusht/checkpoints"
LATER = "data/outputs/2023.01.17/09.10.11_train_diffusion_transformer_lowdim_pusht/checkpoints"
LAYOUTS = {
    "Diffusion Policy": (
        [f"{DP}/latest.ckpt", f"{LATER}/latest.ckpt"],
        ["20.20.06_train_diffusion_unet_lowdim_pusht", "09.10.11_train_diffusion_transformer_lowdim_pusht"],
    ),
    "robomimic, one experiment": (
        ["exp/20240101120000/models/model_epoch_600.pth", "exp/20240102130000/models/model_epoch_600.pth"],
        ["model_epoch_600-20240101120000", "model_epoch_600-20240102130000"],
    ),
    "robomimic, two experiments": (
        ["lift_ph/20240101120000/models/model_epoch_600.pth", "lift_mh/20240102130000/models/model_epoch_600.pth"],
        ["lift_ph", "lift_mh"],
    ),
    "other layouts": (["/a/run1/checkpoints/latest.ckpt", "/a/run2/models/latest.pth"], ["run1", "run2"]),
    "one folder in the other": (["/a/run/latest.ckpt", "/a/run/best/latest.ckpt"], ["latest", "latest-best"]),
    "one file twice": (["/a/run/latest.ckpt", "/a/run/latest.ckpt"], ["latest", "latest-2"]),
    "two kinds of file": (["/a/run/latest.ckpt", "/a/run/latest.pth"], ["latest", "latest-2"]),
    "names that were unique": (["/a/x/one.ckpt", "/b/y/two.ckpt"], ["one", "two"]),
    "a folder that is called as another policy": (
        ["/a/run1/latest.ckpt", "/a/run2/latest.ckpt", "/a/run1.ckpt"],
        ["run1-2", "run2", "run1"],
    ),
    "three, two of one experiment": (
        ["/e/a/1/models/x.pth", "/e/a/2/models/x.pth", "/e/b/1/models/x.pth"],
        ["x-a-1", "x-a-2", "x-b-1"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_by_the_layout_of_a_training(layout):
    files, told = LAYOUTS[layout]
    assert names(*files) == told
    assert names(*files[::-1])[::-1] == told or "twice" in layout or "two kinds" in layout


def test_two_steps_of_one_lerobot_training_are_told_apart():
    folder = "outputs/train/RUN/checkpoints/{}/pretrained_model"
    two = [Stored(Gaussian(), name="RUN", folder=Path(folder.format(step))) for step in ("005000", "010000")]
    assert [policy.name for policy in distinct(two)] == ["RUN-005000", "RUN-010000"]


def test_policies_without_a_folder_are_numbered():
    remote = FixedPolicy(Gaussian(), name="latest")
    assert [p.name for p in distinct([remote, stored("/a/run/latest.ckpt"), remote])] == [
        "latest",
        "latest-2",
        "latest-3",
    ]


def test_a_new_name_leaves_the_policy_as_it_is():
    policies = [stored("/a/run1/latest.ckpt"), stored("/a/run2/latest.ckpt"), stored("/a/other.ckpt")]
    first, second, third = distinct(policies)
    assert third is policies[2]
    assert (first.fingerprint, second.fingerprint) == ("/a/run1/latest.ckpt", "/a/run2/latest.ckpt")
    assert distinct([first, second, third]) == [first, second, third]


def test_a_composition_names_its_policies_apart_in_python():
    policies = [stored("/a/run1/latest.ckpt"), stored("/a/run2/latest.ckpt")]
    assert gpc.compose(policies, [0.5, 0.5]).name == "run1 + run2"
    assert gpc.AveragedChunks(policies).name == "run1 + run2"


def test_both_sides_of_a_comparison_are_told_apart_and_share_what_is_one_policy():
    a, b, c = (stored(f"/a/{run}/latest.ckpt") for run in ("r1", "r2", "r3"))
    sides = _named_apart([as_composition(policy) for policy in (a, b)])
    assert [side.name for side in sides] == ["r1", "r2"]
    mixed = [gpc.compose([a, c], weights) for weights in ([0.5, 0.5], [1, 0])]
    assert [side.name for side in _named_apart(mixed)] == ["r1 + r3", "r1 + r3"]


def test_the_command_line_names_apart_what_it_loads(tmp_path):
    for run in ("first", "second"):
        save_policy(tmp_path / run / "latest", make_card("tiny-noise"))
    given = [f"policies=[{tmp_path}/first/latest,{tmp_path}/second/latest]", "action_names={second: [x, y]}"]
    config = load_config("search", [*given, "env=pusht", "video=0"])
    policies = load_policies(config)
    assert [policy.name for policy in policies] == ["first", "second"]
    assert setup_of(config, policies).names == ["first", "second"]
    for command in ("serve", "deploy"):
        keys = [given[0], "weights=[0.5,0.5]", *(["fps=10"] if command == "deploy" else [])]
        assert compose_from(load_config(command, keys), Console(quiet=True)).name == "first + second"
