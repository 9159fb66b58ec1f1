"""Which simulator several policies were trained for."""

import json
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import pytest

import gpc
from gpc.card import OwnCard
from gpc.commands.cli import main
from gpc.commands.config import options
from gpc.commands.simulators import common_simulator, env_named
from gpc.errors import InputError
from gpc.policy.adapt import rename
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import bundled_cards, load_policy

ASKED = EnvSpec("policy", None, None)


@dataclass
class Trained:
    name: str
    simulator: EnvSpec | None


def trained(name, task="Lift", n_action_steps=8, max_steps=400, **options):
    settings = {"control_freq": options.pop("control_freq", 20)}
    options = {"task": task, "settings": settings} | options
    return Trained(name, EnvSpec("robosuite", n_action_steps, max_steps, options=options))


def test_one_policy_has_its_own_and_what_is_asked_goes_first():
    a = trained("a")
    found, origin = common_simulator([a], ASKED)
    assert found == replace(a.simulator, n_action_steps=None, rename_map={})  # the policies' number is found later
    assert origin == "as a was trained"
    found, _ = common_simulator([a], EnvSpec("policy", 4, 50))
    assert (found.n_action_steps, found.max_steps, found.options) == (4, 50, a.simulator.options)


def test_several_share_what_they_agree_on():
    found, _ = common_simulator([trained("a"), trained("b", max_steps=500, image_size=(84, 84))], ASKED)
    assert (found.max_steps, found.options["image_size"]) == (500, (84, 84))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (trained("b", "Stack"), "a was trained for Lift, b for Stack"),
        (
            trained("b", control_freq=10),
            r"a was trained for Lift with options.settings.control_freq=20, b for Lift with .*control_freq=10",
        ),
    ],
    ids=["task", "setting"],
)
def test_different_ones_are_refused_naming_both(other, message):
    with pytest.raises(InputError, match=message):
        common_simulator([trained("a"), other], ASKED)


def test_a_policy_that_names_none_takes_that_of_the_others():
    unknown = [Trained("b", None), object.__new__(type("Plain", (), {"name": "c"}))]
    found, origin = common_simulator([*unknown, trained("a")], ASKED)
    assert (found.options["task"], origin) == ("Lift", "as a was trained")
    assert common_simulator(unknown, ASKED) == (env_named("pusht"), "since no policy names its task")
    asked = EnvSpec("pusht", max_steps=8)
    assert common_simulator([trained("a")], asked) == (asked, "")


def test_each_bundled_policy_names_the_environment_in_which_it_was_measured():
    for name in bundled_cards():
        found, _ = common_simulator([load_policy(name)], ASKED)
        wanted = env_named(name.split("-")[0])
        assert (found.type, found.name) == (wanted.type, wanted.name)
        if name != "lift-diffusion":  # robomimic's checkpoint holds its own physics
            assert found == wanted
    names = get_args(get_args(get_type_hints(OwnCard)["env"])[0])
    assert set(names) < set(options("env")) - {"policy", "gymnasium", "robosuite"}


def test_a_policy_that_knows_its_task_needs_no_env(tiny, parents, tmp_path, capsys):
    short = ["env.max_steps=4", "sampler.steps=2", "episodes=1", "engine.workers=1", "video=0"]
    assert main(["evaluate", "policies=[lift-flow]", *short, f"run_dir={tmp_path / 'lift'}"]) == 0
    assert "env=Lift, as lift-flow was trained" in " ".join(capsys.readouterr().out.split())
    resolved = json.loads((tmp_path / "lift/manifest.json").read_text())["resolved"]
    assert (resolved["env"]["type"], resolved["env"]["options"]["task"]) == ("robosuite", "Lift")
    assert main(["evaluate", f"policies=[{tiny[0]}]", *short, f"run_dir={tmp_path / 'pusht'}"]) == 0
    assert "env=pusht, since no policy names its task" in " ".join(capsys.readouterr().out.split())
    resolved = json.loads((tmp_path / "pusht/manifest.json").read_text())["resolved"]
    assert resolved["env"] == {"type": "pusht", "n_action_steps": 8, "max_steps": 4, "options": {}}
    assert resolved["rename_map"]["observation.state"] == "agent_pos"
    other = rename(parents[0], {"state": "joints"})
    line = r"pusht offers .*env=pusht, since no policy names its task: another is named by env=, as one of can, gymnasium, lerobot"
    with pytest.raises(InputError, match=line):
        gpc.evaluate(other, episodes=1)
