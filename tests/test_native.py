"""The checkpoint's own inference: how much of a chunk is executed."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import test_from_robomimic as robomimic
from conftest import make_card, save_policy
from diffusion_policy_checkpoints import payload
from diffusion_policy_checkpoints import save as save_pickled
from lerobot_checkpoints import save
from models import FixedPolicy, Gaussian

import gpc
from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.inference.native import common_action_steps
from gpc.policy.adapt import rename
from gpc.results.trajectories import read_trajectory


@dataclass(frozen=True)
class Declaring(FixedPolicy):
    n_action_steps: int | None = None


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory):
    """Two checkpoints of LeRobot that differ in nothing but `n_action_steps`."""
    runs = tmp_path_factory.mktemp("runs")
    return {n: save(runs / f"executes-{n}", n_action_steps=n)[0] for n in (3, 8)}


def evaluate(folder, *policies, more=()):
    short = ["env.max_steps=12", "episodes=1", "video=0", "sampler.steps=2", "engine.workers=1", f"run_dir={folder}"]
    return main(["evaluate", f"policies=[{','.join(policies)}]", *short, *more])


def test_a_checkpoint_executes_its_own_number_of_actions_which_is_printed_and_recorded(lerobot, tmp_path, capsys):
    for number, folder in lerobot.items():
        assert evaluate(tmp_path / str(number), f"lerobot:{folder}") == 0
        assert capsys.readouterr().out.count(f"n_action_steps={number}, as executes-{number} has it") == 1
        manifest = json.loads((tmp_path / str(number) / "manifest.json").read_text())
        assert manifest["config"]["env"]["n_action_steps"] == manifest["resolved"]["env"]["n_action_steps"] == number
    three, eight = (read_trajectory(tmp_path / name, 0)["action"] for name in ("3", "8"))
    np.testing.assert_array_equal(three[:3], eight[:3])
    assert (three[3:8] != eight[3:8]).any()
    assert evaluate(tmp_path / "8 as 3", f"lerobot:{lerobot[8]}", more=["env.n_action_steps=3"]) == 0
    assert "n_action_steps" not in capsys.readouterr().out
    np.testing.assert_array_equal(read_trajectory(tmp_path / "8 as 3", 0)["action"], three)


def test_two_that_differ_are_named_with_a_number_to_give(lerobot, tmp_path, capsys):
    both = [f"lerobot:{folder}" for folder in lerobot.values()]
    assert evaluate(tmp_path, *both, more=["weights=[0.5,0.5]"]) == 2
    error = capsys.readouterr().err
    assert "(3 of executes-3, 8 of executes-8); give one, as in env.n_action_steps=3" in error


@pytest.mark.parametrize(
    ("counts", "executed"),
    [((None, None), 8), ((3, None), 3), ((3, 3), 3)],
    ids=["none declares one", "one", "both"],
)
def test_what_is_declared_counts(counts, executed):
    policies = [Declaring(Gaussian(), name=str(i), n_action_steps=count) for i, count in enumerate(counts)]
    views = [rename(policies[0], {"state": "pose"}), policies[1]]
    for members in (policies, views):
        nested = gpc.compose([gpc.compose(members), gpc.compose(members)])
        assert common_action_steps([nested], "") == common_action_steps([gpc.AveragedChunks(members)], "") == executed


def test_each_codebase_has_its_own_name_for_it(tmp_path):
    latency = save_pickled(payload("unet"), tmp_path / "latency.ckpt")  # policy.n_action_steps is code there
    plain = payload("dp3")
    del plain["cfg"]["n_action_steps"]
    plain["cfg"]["policy"]["n_action_steps"] = 5
    card = make_card("tiny-noise") | {"inference": {"n_action_steps": 6}}
    sources = {
        f"diffusion_policy:{latency}": 4,
        f"diffusion_policy:{save_pickled(plain, tmp_path / 'plain.ckpt')}": 5,
        f"robomimic:{robomimic.save(tmp_path / 'robomimic.pth')}": 8,
        save_policy(tmp_path / "own", card): 6,
        save_policy(tmp_path / "silent", make_card("tiny-noise")): None,
        **dict.fromkeys(
            ["pusht-diffusion", "pusht-flow", "pusht-beso", "pusht-image", "lift-diffusion", "can-flow"], 8
        ),
    }
    assert {source: gpc.load_policy(source).n_action_steps for source in sources} == sources


def test_a_number_that_is_none_is_refused(tmp_path):
    content = payload("unet")
    content["cfg"]["n_action_steps"] = 2.5
    with pytest.raises(InputError, match=r"wrong has n_action_steps=2\.5, no whole number above 0"):
        gpc.load_policy(f"diffusion_policy:{save_pickled(content, tmp_path / 'wrong.ckpt')}")
