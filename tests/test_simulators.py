"""Which simulator several policies were trained for."""

from dataclasses import dataclass, replace

import pytest

from gpc.commands.simulators import common_simulator
from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec

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
    assert common_simulator([a], ASKED) == replace(a.simulator, n_action_steps=None)  # the policies' own, found later
    found = common_simulator([a], EnvSpec("policy", 4, 50))
    assert (found.n_action_steps, found.max_steps, found.options) == (4, 50, a.simulator.options)


def test_several_share_what_they_agree_on():
    found = common_simulator([trained("a"), trained("b", max_steps=500, image_size=(84, 84))], ASKED)
    assert (found.max_steps, found.options["image_size"]) == (500, (84, 84))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (trained("b", "Stack"), "a was trained for Lift, b for Stack"),
        (
            trained("b", control_freq=10),
            r"a was trained for Lift with options.settings.control_freq=20, b for Lift with .*control_freq=10",
        ),
        (Trained("b", None), "the checkpoint of b names no simulator"),
        (object.__new__(type("Plain", (), {"name": "b"})), "the checkpoint of b names no simulator"),
    ],
    ids=["task", "setting", "unknown simulator", "not told"],
)
def test_different_ones_are_refused_naming_both(other, message):
    with pytest.raises(InputError, match=message):
        common_simulator([trained("a"), other], ASKED)
