"""Configurations: NaN is no number, and files repeat what classes declare."""

import pytest
from omegaconf import OmegaConf

from gpc.bridge.blending import RecedingHorizon
from gpc.commands.config import load_config, option, plain
from gpc.commands.setup import engine_of, executor_of, sampling_of
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.objects import build
from gpc.registry import COMPOSERS, SEARCHES, names
from gpc.rollout.engine import Engine
from gpc.rollout.executors import Local, Ray

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
    assert {"fps", "watchdog.deadline", "engine.timeout", "sampler.sigma_max", "timeout"} <= tried


@pytest.mark.parametrize(
    "override",
    ["rate=nan", "seconds=nan", "safety.velocity=[1,nan]", "safety.position=[[0,nan],[1,1]]", "virtual_latency=nan"],
)
def test_nan_is_refused_in_lists_and_where_the_default_is_null(override):
    with pytest.raises(InputError, match=r"nan"):
        load_config("deploy", ["fps=10", override])


def test_nan_is_refused_in_what_is_built_from_plain_data():
    with pytest.raises(InputError, match=r"stitch.n_action_steps=nan is not a number"):
        build(RecedingHorizon, {"n_action_steps": float("nan")}, "stitch")


@pytest.mark.parametrize("name", names(SEARCHES))
def test_the_files_of_searches_hold_the_defaults_of_their_classes(name):
    """One declaration: a file repeats the defaults beside its comments, and this keeps them equal."""
    shipped = plain(load_config("search", ["policies=[a,b]", f"search={name}"]).search)
    assert shipped == option("search", name)


@pytest.mark.parametrize("name", names(COMPOSERS))
def test_the_files_of_composers_hold_the_defaults_of_their_classes(name):
    assert plain(load_config("evaluate", ["policies=[a,b]", f"composer={name}"]).composer) == option("composer", name)


def test_the_files_of_sampler_engine_and_executors_hold_the_defaults_of_their_classes():
    config = load_config("evaluate", ["policies=[a]"])
    assert (sampling_of(config), engine_of(config), executor_of(config)) == (Sampling(), Engine(), Local())
    assert executor_of(load_config("evaluate", ["policies=[a]", "executor=ray"])) == Ray()
