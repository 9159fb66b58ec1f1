"""Policies of the user's own, named module:name[:argument]: found in the working directory, recorded, and replayed."""

import json
import os
import sys

import pytest
import torch

import gpc
from gpc.commands.cli import main
from gpc.commands.config import load_config
from gpc.commands.setup import compose_from
from gpc.errors import InputError
from gpc.inert import Console
from gpc.policy.load import load_registered
from gpc.testing import check_policy

MODULE = '''
from dataclasses import dataclass
import torch
import mine_part
from gpc.policy.spec import ActionSpec, ObservationSpec
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import LinearFlow


@dataclass(frozen=True)
class Mine:
    """Pushes around a place; the network is that of a Gaussian, a velocity."""

    place: float = 0.2
    name: str = "mine"
    fingerprint: str = "of 2026"
    levels = LinearFlow().levels
    actions = ActionSpec(16, scale=(mine_part.SCALE,) * 2, offset=(256.0, 256.0), start=-1)
    observations = ObservationSpec({"state": (5,)}, 2)

    def condition(self, observation):
        def velocity(x, t):
            t = t[:, None, None]
            return ((x - (1 - t) * self.place) * (t - 0.01 * (1 - t)) / (t**2 + 0.01 * (1 - t) ** 2)) - self.place

        return NetworkDenoiser(velocity, LinearFlow(), "velocity")


def load(text):
    return Mine(float(text.partition("at:")[2]))


def nothing():
    return None


def missing(path):
    return open(path)


mine = Mine()
'''
SHORT = ["env.max_steps=16", "video=0", "sampler.steps=3", "episodes=1"]


@pytest.fixture
def folder(user_folder, monkeypatch):
    (user_folder / "mine_gpc.py").write_text(MODULE)
    (user_folder / "mine_part.py").write_text("SCALE = 200.0\n")
    (user_folder / "beso.py").write_text("raise SystemExit('a loader of this name is registered')\n")
    for record in ("USER_FOLDERS", "USER_MODULES"):
        monkeypatch.setattr(f"gpc.registry.{record}", kind := type(getattr(gpc.registry, record))())
        for module in ("gpc.rollout.process", "gpc.rollout.executors", "gpc.results.run_folder"):
            monkeypatch.setattr(f"{module}.{record}", kind, raising=False)
    return user_folder


def said(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize(
    ("source", "place"),
    [("mine_gpc:mine", 0.2), ("mine_gpc:Mine", 0.2), ("mine_gpc:load:at:0.3", 0.3)],
)
def test_an_object_a_class_and_a_function_of_the_working_directory(folder, source, place):
    policy = gpc.load_policy(source)
    assert policy.place == place
    check_policy(policy)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("mine_gpd:load:x", "unknown policy loader or module 'mine_gpd'; choose one of beso, "),
        ("robomimc:lift.pth", "unknown policy loader or module 'robomimc'; did you mean 'robomimic'?"),
        ("mine_gpc:laod:at:1", "policy: mine_gpc holds no 'laod'; did you mean 'load'?"),
        ("mine_gpc:load:at:x", "policy mine_gpc:load:at:x: ValueError: could not convert string to float: 'x', "),
        ("mine_gpc:load", "policy mine_gpc:load: TypeError: load() missing 1 required positional argument: 'text', "),
        ("mine_gpc:missing:no.pt", "FileNotFoundError: [Errno 2] No such file or directory: 'no.pt', "),
        ("mine_gpc:nothing", "policy mine_gpc:nothing is a NoneType without name, actions, "),
        ("mine_gpc:Mine.name", "policy mine_gpc:Mine.name is a str without name, actions, "),
        ("mine_gpc:mine:x", "policy mine_gpc:mine:x: mine_gpc:mine is no function; leave out 'x'"),
        ("beso:nowhere", "nowhere"),
    ],
)
def test_what_is_no_policy_is_one_line(folder, source, line, capsys):
    code, text = said(capsys, "evaluate", f"policies=[{source}]", *SHORT)
    assert (code, line in text) == (2, True), text
    assert "beso" not in sys.modules, "a registered loader wins over a module of its name"


def test_a_run_records_the_module_and_is_replayed_if_the_user_allows_it(folder, capsys):
    source = "mine_gpc:load:at:0.3"
    code, text = said(capsys, "evaluate", f"policies=[{source}]", *SHORT, "run_dir=run")
    assert code == 0, text
    manifest = json.loads((folder / "run/manifest.json").read_text())
    assert manifest["resolved"]["policies"] == [source]
    assert manifest["versions"]["mine_gpc"].startswith("sha256:")
    del sys.modules["mine_gpc"]
    code, text = said(capsys, "replay", "run", "--episode", 0)
    assert (code, f"the run names policies='{source}', which is not loaded" in text) == (2, True), text
    assert "mine_gpc" not in sys.modules, "a folder's word imports nothing"
    for allowed in (["--policies", source], ["--trust"]):
        code, text = said(capsys, "replay", "run", "--episode", 0, *allowed)
        assert (code, "actions: all 16 the same, bit for bit" in text) == (0, True), text


def test_a_module_that_has_changed_since_is_named(folder, capsys):
    ask = ["evaluate", "policies=[mine_gpc:mine]", *SHORT, "run_dir=run"]
    assert said(capsys, *ask)[0] == 0
    (folder / "mine_gpc.py").write_text(MODULE.replace("place: float = 0.2", "place: float = 0.1"))
    del sys.modules["mine_gpc"]
    gpc.registry.USER_MODULES.clear()  # as in a new process
    code, text = said(capsys, *ask, "episodes=1")
    assert code == 0, "the finished run needs no new episode"
    code, text = said(capsys, "replay", "run", "--episode", 0, "--trust")
    assert (code, "mine_gpc: sha256:" in text) == (1, True), text
    os.truncate(folder / "run/episodes.jsonl", 0)
    code, text = said(capsys, *ask)
    assert (code, "was started with mine_gpc sha256:" in text, "restore mine_gpc, or use" in text) == (2, True, True), (
        text
    )


def test_all_commands_take_such_a_name(folder, tiny, capsys):
    both = f"policies=[mine_gpc:mine,{tiny[0]}]"
    served = compose_from(load_config("serve", [both, "weights=[0.5,0.5]"]), Console(quiet=True))
    assert served.name == "mine + tiny-noise"
    assert compose_from(load_config("deploy", [both, "weights=[1,0]", "fps=10"]), Console(quiet=True)).name == "mine"
    code, text = said(capsys, "compare", both, *SHORT)
    assert code == 0, text
    code, text = said(capsys, "diagnose", both, "env.max_steps=16", "chunks=2", "sampler.steps=3")
    assert code == 0, text


@pytest.mark.parametrize("source", ["os:system:touch imported", "mine_gpc:mine"])
def test_no_file_names_a_module(folder, source):
    from gpc.policies.as_lerobot import save

    with pytest.raises(InputError, match="unknown policy loader or module"):
        load_registered(source)
    with pytest.raises(InputError, match="unknown policy loader or module"):
        save(folder / "composed", [source], [1.0])
    assert not (folder / "imported").exists()
    assert "mine_gpc" not in sys.modules


def test_a_network_in_a_script_is_named_alike(folder):
    torch.save({"at": 1}, "weights.pt")
    mixed = gpc.compose([gpc.load_policy("mine_gpc:load:at:0.1"), gpc.load_policy("mine_gpc:mine")], [0.5, 0.5])
    assert mixed.name == "mine + mine-2"
