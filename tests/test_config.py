"""Configurations: NaN is no number, whatever the key."""

import pytest
from omegaconf import OmegaConf

from gpc.commands.config import bind, load_config
from gpc.errors import InputError

GIVEN = {"deploy": ["fps=10"], "serve": ["policies=[x]"]}
COMMANDS = ("evaluate", "search", "compare", "diagnose", "serve", "deploy")


def numbers(node, path=""):
    """The keys of all numbers in a configuration."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{key}"


def test_nan_is_refused_for_every_number_of_every_command():
    tried = set()
    for command in COMMANDS:
        given = GIVEN.get(command, ["policies=[x]"])
        keys = set(numbers(OmegaConf.to_container(load_config(command, given)))) - tried
        assert keys
        for key in sorted(keys):
            with pytest.raises(InputError, match=rf"{key}=nan"):
                load_config(command, [*given, f"{key}=nan"])
        tried |= keys
    assert {"fps", "watchdog.deadline", "clock.latency", "engine.timeout", "sampler.sigma_max", "timeout"} <= tried


@pytest.mark.parametrize(
    "override",
    ["rate=nan", "seconds=nan", "safety.velocity=[1,nan]", "safety.position=[[0,nan],[1,1]]", "clock.latency=.nan"],
)
def test_nan_is_refused_in_lists_and_where_the_default_is_null(override):
    with pytest.raises(InputError, match=r"nan"):
        load_config("deploy", ["fps=10", override])


def test_nan_is_refused_in_what_is_built_from_python():
    node = OmegaConf.create({"_target_": "gpc.bridge.blending.RecedingHorizon", "n_action_steps": float("nan")})
    with pytest.raises(InputError, match=r"n_action_steps=nan is not a number"):
        bind(node)
