"""Hydra configurations: composed from `gpc.configs`, checked, and instantiated from an allow-list only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from inspect import Parameter, signature
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpc.errors import InputError
from gpc.load import suggest

# Hydra imports and calls whatever `_target_` names; nothing but these is ever handed to it.
ALLOWED = frozenset(
    {
        "gpc.worker.EnvSpec",
        "gpc.rollout.Engine",
        "gpc.cluster.Local",
        "gpc.cluster.Ray",
        "gpc.control.Sampling",
        "gpc.composition.average",
        "gpc.composition.both",
        "gpc.composition.compose",
        "gpc.composition.either",
        "gpc.composition.guide",
        "gpc.composition.schedule",
        "gpc.composition.split",
        "gpc.robots.from_lerobot.make_robot",
        "gpc.weight_search.Grid",
        "gpc.weight_search.Racing",
        "gpc.weight_search.Random",
        "gpc.weight_search.Demos",
        "gpc.bayesian_search.Bayesian",
        "gpc.bridge.pilot.Patience",
        "gpc.bridge.safety.limits_from",
        "gpc.bridge.stitch.RealTimeChunking",
        "gpc.bridge.stitch.RecedingHorizon",
        "gpc.bridge.stitch.TemporalEnsembling",
    }
)

NUMBERS = (
    *("episodes", "block", "seed", "video", "max_batch"),
    *(f"{phase}.{key}" for phase in ("search", "report") for key in ("budget", "episodes", "seed")),
)
# their keys are the policies' and the simulator's own
OPEN = r"rename_map|origin|steer|action_names|sampler\.reuse|env\.options\.settings|robot\.(observations|settings)"


def load_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration `name` ("evaluate", "search") with overrides as on the command line.

    Raises InputError, one line, where an override is malformed, a key or group option unknown or a value missing.
    """
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("gpc.configs", version_base="1.3"):
            opened = [re.sub(rf"^(?=({OPEN})[=.])", "++", item) for item in overrides]
            config = compose(name, overrides=opened)
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise InputError(f"{sorted(missing)[0]} is not set; give it on the command line, as in {_example(missing)}")
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, name)) from None
    _check_targets(config)
    _check_numbers(config)
    return config


def bind(config: DictConfig) -> Callable[..., Any]:
    """What a config node's `_target_` names, with the node's arguments: call it with the others."""
    _check_targets(config)
    bound: Callable[..., Any] = instantiate(config, _partial_=True, _convert_="all")
    return bound


def build(config: DictConfig, **extra: Any) -> Any:
    """The object that a config node's `_target_` names; `extra` are further arguments of it.

    Raises InputError where the target is not on the allow-list or its arguments do not fit.
    """
    try:
        return bind(config)(**extra)
    except (HydraException, TypeError) as error:
        raise InputError(_one_line(error.__cause__ or error, config._target_)) from None


def completed(node: Any) -> Any:
    """A recorded configuration with the defaults of whatever its `_target_`s name, so that what means the same is equal.

    A run of an earlier version had the settings that came later at their defaults.
    """
    if isinstance(node, list):
        return [completed(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    own = {key: completed(value) for key, value in node.items()}
    target = own.get("_target_")  # of a file, so it may be anything
    return _defaults(target) | own if isinstance(target, str) and target in ALLOWED else own


def _defaults(target: str) -> dict[str, Any]:
    called = get_object(target)
    if is_dataclass(called):
        found = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(called)}
    else:
        found = {parameter.name: parameter.default for parameter in signature(called).parameters.values()}
    given = {name: value for name, value in found.items() if value not in (MISSING, Parameter.empty)}
    return dict(json.loads(json.dumps(given)))


def options(group: str) -> list[str]:
    """The names of a config group's options ("env", "sampler", "search")."""
    return sorted(
        p.name.removesuffix(".yaml") for p in files("gpc.configs").joinpath(group).iterdir() if ".yaml" in p.name
    )


def _check_numbers(config: DictConfig) -> None:
    """Counts and seeds must be whole numbers that make sense; InputError names the key."""
    for key in NUMBERS:
        value = OmegaConf.select(config, key, default=1)
        low, high = (0, 2**31) if key.endswith("seed") else (key != "video", 10**6)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InputError(f"{key}={value} must be a whole number, at least {low:d} and at most {high}")


def _check_targets(node: DictConfig) -> None:
    _walk(OmegaConf.to_container(node, resolve=True), "")


def _walk(value: Any, where: str) -> None:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        if key == "_target_" and item not in ALLOWED:
            raise InputError(f"{where}_target_={item} is not allowed; gpc builds only {', '.join(sorted(ALLOWED))}")
        _walk(item, f"{where}{key}.")


def _example(missing: set[str]) -> str:
    return "'policies=[pusht-diffusion,pusht-flow]'" if "policies" in missing else f"{sorted(missing)[0]}=VALUE"


def _one_line(error: BaseException, name: str) -> str:
    """Hydra's message on one line; an unknown key or option is answered with the nearest known one."""
    text = " ".join(str(error).split())
    option = re.search(r"Could not find '([\w-]+)/([^']+)'", text)
    if option:
        return f"unknown {option[1]} {option[2]!r}{suggest(option[2], options(option[1]))}"
    key = re.search(r"(?:Could not override|Key) '([\w.]+)'", text)
    if key and "not in" in text + " not in":
        return f"unknown key {key[1]!r} in {name}{suggest(key[1], _known_keys(name))}"
    flat = re.search(r"Error merging override \+\+(\w+)=", text)
    if flat:
        return f"{flat[1]} takes pairs, as in '{flat[1]}={{NAME: VALUE}}'"
    unset = re.search(r"Missing mandatory value: (\S+)", text)
    return f"{unset[1]} is not set; give it on the command line, as in {_example({unset[1]})}" if unset else text


def _known_keys(name: str) -> list[str]:
    with initialize_config_module("gpc.configs", version_base="1.3"):
        config = OmegaConf.to_container(compose(name))

    def paths(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        inner = [path for key, item in node.items() if key != "_target_" for path in paths(item, f"{prefix}.{key}")]
        return [prefix, *inner] if prefix else inner

    return [path.strip(".") for path in paths(config, "")]


def describe(name: str) -> str:
    """Every key of a configuration with its default and comment, as the files have them, for `-h`."""
    root = files("gpc.configs")
    text = [root.joinpath(f"{name}.yaml").read_text()]
    for group in re.findall(r"^  - (\w+): \w+$", text[0], re.MULTILINE):
        names = [(option, root.joinpath(group, f"{option}.yaml").read_text()) for option in options(group)]
        text += [f"# {group}={option}: keys {group}.*\n{content}" for option, content in names]
    text[1:1] = [
        root.joinpath(f"{part}.yaml").read_text() for part in re.findall(r"^  - ([a-z]+)$", text[0], re.MULTILINE)
    ]
    # what Hydra reads, not the user
    skipped = re.compile(r"^( *_target_:.*\n|# @package.*\n|defaults:\n(  - .*\n)+\n?)", re.MULTILINE)
    return "\n".join(skipped.sub("", part) for part in text)
