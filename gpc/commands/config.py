"""Hydra configurations: composed from `gpc.configs`, checked, and instantiated from an allow-list only."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from functools import partial
from importlib.resources import files
from inspect import signature
from pkgutil import resolve_name
from typing import Annotated, Any, cast

import numpy as np
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from msgspec import Meta
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpc.errors import InputError, one_line, suggest
from gpc.schema import Seconds, check

# What a `_target_` may name, in each part of a configuration: it is imported and called.
ALLOWED: Mapping[str, frozenset[str]] = {
    "env": frozenset({"gpc.policy.env_spec.EnvSpec"}),
    "engine": frozenset({"gpc.rollout.engine.Engine"}),
    "executor": frozenset({"gpc.rollout.executors.Local", "gpc.rollout.executors.Ray"}),
    "sampler": frozenset({"gpc.inference.settings.Sampling"}),
    "composer": frozenset(
        f"gpc.composition.composed.{name}" for name in ("average", "both", "compose", "either", "guide")
    ),
    "search": frozenset(
        {
            *(f"gpc.weights.searches.{name}" for name in ("Grid", "Racing", "Random", "FromDemonstrations")),
            "gpc.weights.bayesian.Bayesian",
        }
    ),
    "robot": frozenset({"gpc.robots.from_lerobot.make_robot"}),
    "watchdog": frozenset({"gpc.bridge.controller.Watchdog"}),
    "safety": frozenset({"gpc.bridge.safety.limits_from"}),
    "stitch": frozenset(
        f"gpc.bridge.blending.{name}" for name in ("RealTimeChunking", "RecedingHorizon", "TemporalEnsembling")
    ),
}
TARGETS = frozenset().union(*ALLOWED.values())
COMPARED = frozenset().union(*(ALLOWED[part] for part in ("env", "sampler", "composer", "search")))
HYDRAS = frozenset({"_target_", "_args_", "_partial_", "_recursive_", "_convert_"})  # keys of Hydra's instantiate

Count = Annotated[int, Meta(ge=1, le=10**6)]
Seed = Annotated[int, Meta(ge=0, le=2**31)]
KINDS: Mapping[str, Any] = {
    **{key: Count for key in ("episodes", "block", "max_batch")},
    **{f"{phase}.{key}": Count for phase in ("search", "report") for key in ("budget", "episodes")},
    **{key: Seed for key in ("seed", "search.seed", "report.seed")},
    "video": Annotated[int, Meta(ge=0, le=10**6)],
    "fps": Annotated[float, Meta(gt=0, le=1000)],
    "rate": Annotated[float, Meta(gt=0, le=1000)] | None,
    "seconds": Seconds | None,
    "clock.latency": Annotated[float, Meta(ge=0, le=1e9)],
    "server": str | None,
    "task": str,
    "dataset": str | None,
    "view": bool | str,
    **{f"stitch.{key}": Count for key in ("n_action_steps", "request_every", "max_chunks")},
}
"""Types and bounds of settings, in every command that has them; what is built from a `_target_` checks itself."""

# their keys are the policies' and the simulator's own
OPEN = r"rename_map|origin|steer|action_names|env\.options\.settings|robot\.(observations|settings)"


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
    check_nodes(config)
    _check_kinds(config)
    return config


def bind(config: DictConfig) -> Callable[..., Any]:
    """Return what a config node's `_target_` names, with the node's arguments: call it with the others.

    Raises InputError if the target is not on the allow-list, takes no such argument, or needs a package that is missing.
    """
    node = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    _check_target(node, TARGETS, "")
    target = node.pop("_target_")
    try:
        called = resolve_name(target)
    except ImportError as error:
        raise InputError(f"{target} needs a package that is missing ({one_line(error)}); run gpc doctor") from None
    unknown = sorted(node.keys() - signature(called).parameters.keys())
    if unknown:
        raise InputError(f"{target} takes no {unknown[0]!r}")
    return partial(called, **node)


def build(config: DictConfig, **extra: Any) -> Any:
    """Return the object that a config node's `_target_` names; `extra` are further arguments of it.

    Raises InputError if the target is not on the allow-list or its arguments do not fit.
    """
    try:
        return bind(config)(**extra)
    except TypeError as error:
        raise InputError(f"{config._target_}: {one_line(error)}") from None


def options(group: str) -> list[str]:
    """The names of a config group's options ("env", "sampler", "search")."""
    return sorted(
        p.name.removesuffix(".yaml") for p in files("gpc.configs").joinpath(group).iterdir() if ".yaml" in p.name
    )


def _check_kinds(config: DictConfig) -> None:
    for key, kind in KINDS.items():
        value = OmegaConf.select(config, key, default=MISSING)
        if value is not MISSING:
            check(kind, value, key)


def check_nodes(config: DictConfig) -> None:
    """Raise InputError if a part of the configuration names a `_target_` that is not allowed there, or holds NaN."""
    for part, node in cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)).items():
        if isinstance(node, dict) and "_target_" in node:
            _check_target(node, ALLOWED.get(part, frozenset()), f"{part}.")
        else:
            _check_plain({part: node}, "")


def _check_target(node: Mapping[str, Any], allowed: frozenset[str], where: str) -> None:
    """The node's own target is one of these, and nothing inside of it has one."""
    target = node.get("_target_")
    if not isinstance(target, str) or target not in allowed:
        choice = ", ".join(sorted(allowed)) or "nothing"
        raise InputError(f"{where}_target_={target} is not allowed; gpc builds only {choice} there")
    _check_plain({key: value for key, value in node.items() if key != "_target_"}, where)


def _check_plain(value: Any, where: str) -> None:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        if key in HYDRAS:
            raise InputError(f"{where}{key}={item} is not allowed: gpc builds nothing there")
        if isinstance(item, float) and np.isnan(item):  # every comparison with a bound would be false
            raise InputError(f"{where}{key}={item} is not a number")
        _check_plain(item, f"{where}{key}.")


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
