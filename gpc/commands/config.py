"""Hydra configurations: composed from `gpc.configs` and from what packages register, and checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from importlib.resources import files
from itertools import zip_longest
from math import isnan
from pathlib import Path
from typing import Annotated, Any, cast

import gymnasium
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from msgspec import Meta
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpc.commands.overrides import nearest, quoted, without_dashes
from gpc.errors import InputError, suggest
from gpc.objects import REQUIRED, described, settings_of
from gpc.registry import COMPOSERS, ENVS, SEARCHES, import_named, is_ours, load_entry, load_named, names
from gpc.schema import Count, Seed, check

REGISTERED = {"env": ENVS, "search": SEARCHES, "composer": COMPOSERS}
"""Config groups whose options packages register, and the group of entry points."""
PASSED = {"env": ("observation_keys", "render_mode"), "search": (), "composer": ("policies", "weights")}
"""Arguments of registered classes that no configuration holds."""
OUTSIDE = "outside"
"""Config option of an environment that the user names and no package registers."""

Config = DictConfig | Mapping[str, Any]
"""A configuration from Hydra, or plain data with the same keys."""

KINDS: dict[str, Any] = {
    **{key: Count for key in ("episodes", "block", "chunks", "max_batch", "report.episodes")},
    **{key: Seed for key in ("seed", "report.seed")},
    "video": Annotated[int, Meta(ge=0, le=10**6)],
    **{
        key: str | None
        for key in ("demonstrations", "run_dir", "log", "dataset", "server", "host", "token", "certificate", "key")
    },
    "task": str,
    "policies": list[str] | str,
    "weights": list[Any] | None,
    "rename_map": dict[str, str],
    **{key: dict[str, Any] for key in ("report", "watchdog", "safety", "robot.observations")},
    "robot.actions": list[str] | None,
    "tf32": bool | list[bool],
}
"""Types and bounds of settings that belong to no class, in each command that has them."""
PATHS = {"demonstrations", "run_dir", "dataset", "certificate", "key"}
"""Keys that hold a path of this machine; `~` is the home folder."""

# keys inside these are the policies' and the simulator's own, or those of an object that is null by default
OPEN = r"sampler\.best_of|rename_map|origin|steer|action_names|env\.options\.settings|robot\.(observations|settings)"

CHANGED = {
    r"engine\.retries=.*": "gpc.Engine(retries=...) in Python; the command line keeps its default",
    r"env\.target=(.*)": r"env=\1",
    r"search\.demonstrations=(.*)": r"demonstrations=\1",
    r"clock\.kind=real$": "virtual_latency=null, the default",
    r"clock\.kind=": "virtual_latency=0, with the seconds that a chunk takes",
    r"clock\.latency=(.*)": r"virtual_latency=\1",
    r"safety\.hold=": "safety.actions=absolute for last, relative for zero",
    r"stitch\.every=(.*)": r"stitch.request_every=\1",
    r"stitch\.kept=(.*)": r"stitch.max_chunks=\1",
    r"sampler\.candidates=(.*)": r"sampler.best_of.n=\1",
    r"sampler\.critic=(.*)": r"sampler.best_of.n=8 sampler.best_of.cost=\1",
    r"sampler\.(corrections|rate)=(.*)": r"sampler=langevin sampler.method.\1=\2",
    r"sampler\.(teleport|spread)=.*": "'sampler.method={type: teleport, sigma: 2}'",
    r"composer=(scheduled|per_dimension)$|composer\.(edges|groups)=": "composer=convex, with one weight for each policy",
}
"""Keys of earlier versions, as patterns, and the form that replaces each."""


def load_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration of a command, "evaluate" or "search" for example.

    Args:
        name: the command.
        overrides: keys and values, as on the command line.

    Raises:
        InputError: If an override is malformed, a key or option of a group is unknown, a value is missing or of another
            type.
    """
    for override, following in zip_longest(overrides, overrides[1:], fillvalue=""):
        if override.startswith("-"):
            raise InputError(without_dashes(name, override, following, known_keys(name)))
        _check_changed(override)
    overrides = [quoted(override, KINDS.get(override.partition("=")[0].lstrip("+"))) for override in overrides]
    GlobalHydra.instance().clear()
    overrides = [_outside(override) for override in overrides]
    _register(overrides)
    try:
        with initialize_config_module("gpc.configs", version_base="1.3"):
            keys = rf"{OPEN}|env\.options" if f"env={OUTSIDE}" in overrides else OPEN
            overrides = [re.sub(rf"^(?=({keys})[=.])", "++", item) for item in overrides]
            config = compose(name, overrides=overrides)
        missing = OmegaConf.missing_keys(config)
        if missing:
            raise InputError(f"{sorted(missing)[0]} is not set; give it on the command line, as in {_example(missing)}")
        OmegaConf.resolve(config)
        if isinstance(names_of := config.get("rename_map"), DictConfig):  # the places of a tuple are read as numbers
            config["rename_map"] = {str(k): str(v) if isinstance(v, int) else v for k, v in names_of.items()}
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a group that is null
        raise InputError(_one_line(error, name)) from None
    for key, value in _leaves(plain(config)):
        if isinstance(value, float) and isnan(value):  # every comparison with a bound would be false
            raise InputError(f"{key}={value} is not a number")
    _check_kinds(config, KINDS | ({"seed": Seed | None} if name == "evaluate" else {}))
    for key in PATHS & config.keys():
        if config[key]:
            config[key] = str(Path(config[key]).expanduser())
    return config


def plain(config: Config) -> dict[str, Any]:
    """Return a configuration, or a part of one, as plain dicts, lists and values."""
    content = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    return cast(dict[str, Any], content)


def options(group: str) -> list[str]:
    """Return the names of a config group's options ("env", "sampler", "search")."""
    return sorted({*_shipped(group), *(names(REGISTERED[group]) if group in REGISTERED else ())})


def _shipped(group: str) -> list[str]:
    folder = files("gpc.configs").joinpath(group)
    return [path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")]


def _register(overrides: Sequence[str]) -> None:
    """Make options of the chosen registered types without a file in gpc.configs."""
    for override in overrides:
        group, equals, name = override.partition("=")
        if equals and group in REGISTERED and name not in _shipped(group) and name in names(REGISTERED[group]):
            ConfigStore.instance().store(group=group, name=name, node=option(group, name))


def _outside(override: str) -> str:
    """Make an option of an environment that no package registers with gpc.

    "env=module:name" is a class or function of the user's, or an id that the module registers with gymnasium, and "env=ID"
    is one of gymnasium's ids.
    """
    group, equals, name = override.partition("=")
    module, colon, path = name.partition(":")
    if group != "env" or not equals or name in options("env"):
        return override
    imported = import_named(module, override) if colon else None
    if re.search(r"-v\d+$", name) or (imported and not hasattr(imported, path) and path in gymnasium.registry):
        shipped = OmegaConf.load(str(files("gpc.configs").joinpath("env", "gymnasium.yaml")))
        node = plain(cast(DictConfig, shipped))["env"]
        node["options"]["task"] = name
    elif imported:
        node = option("env", name)
    else:
        return override
    ConfigStore.instance().store(group="env", name=OUTSIDE, node=node)
    return f"env={OUTSIDE}"


def option(group: str, name: str) -> dict[str, Any]:
    """Return the config option of a type: its settings with defaults."""
    kind = load_named(name, group) if ":" in name else load_entry(REGISTERED[group], group, name)
    if not callable(kind):
        raise InputError(f"{group}={name} is a {type(kind).__name__}; name a class, or a function that makes one")
    settings = {
        key: "???" if setting.default is REQUIRED else described(setting.default)
        for key, setting in settings_of(kind).items()
        if key not in PASSED[group]
    }
    if group == "env":
        return {"type": name, "n_action_steps": None, "max_steps": settings.pop("max_steps", None), "options": settings}
    return {"type": name, **settings}


def _check_changed(override: str) -> None:
    """Refuse a key of an earlier version, with its new form."""
    for pattern, new in CHANGED.items():
        match = re.match(rf"[+~]*(?:{pattern})", override)
        if match:
            raise InputError(f"{override.partition('=')[0]} has changed; write {match.expand(new)}")


def _check_kinds(config: DictConfig, kinds: Mapping[str, Any]) -> None:
    for key, kind in kinds.items():
        value = OmegaConf.select(config, key, default=MISSING)
        if value is not MISSING:
            check(kind, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, key)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a configuration with its key."""
    if not isinstance(node, dict | list):
        yield path, node
    for key, item in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _leaves(item, f"{path}.{key}".lstrip("."))


def _example(missing: set[str]) -> str:
    return "'policies=[pusht-diffusion,pusht-flow]'" if "policies" in missing else f"{sorted(missing)[0]}=VALUE"


def _one_line(error: BaseException, name: str) -> str:
    """Return Hydra's message on one line, with the nearest known key or option."""
    text = " ".join(str(error).split())
    option = re.search(r"Could not find '([\w-]+)/([^']*)'", text)
    if option:
        return f"unknown {option[1]} {option[2]!r}{suggest(option[2], options(option[1]))}"
    key = re.search(r"(?:Could not override|Key) '([\w.]+)'", text)
    if key and "not in" in text + " not in":
        return f"unknown key {key[1]!r} in {name}{nearest(key[1], known_keys(name))}; gpc {name} -h lists all"
    flat = re.search(r"Error merging override \+\+(\w+)=", text)
    if flat:
        return f"{flat[1]} takes pairs, as in '{flat[1]}={{NAME: VALUE}}'"
    unset = re.search(r"Missing mandatory value: (\S+)", text)
    return f"{unset[1]} is not set; give it on the command line, as in {_example({unset[1]})}" if unset else text


def known_keys(name: str) -> list[str]:
    """Return the keys of a command."""
    with initialize_config_module("gpc.configs", version_base="1.3"):
        config = OmegaConf.to_container(compose(name))

    def paths(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        inner = [path for key, item in node.items() for path in paths(item, f"{prefix}.{key}")]
        return [prefix, *inner] if prefix else inner

    return [path.strip(".") for path in paths(config, "")]


def groups(name: str) -> dict[str, str]:
    """Return the config groups of a command, each with its default option."""
    text = files("gpc.configs").joinpath(f"{name}.yaml").read_text()
    return dict(re.findall(r"^  - (\w+): (\w+)$", text, re.MULTILINE))


def help_text(name: str) -> str:
    """Return every key of a command with its default and comment, for `-h`."""
    root = files("gpc.configs")
    text = [root.joinpath(f"{name}.yaml").read_text()]
    for group, default in groups(name).items():
        choices = [(choice, root.joinpath(group, f"{choice}.yaml").read_text()) for choice in sorted(_shipped(group))]
        registered = REGISTERED.get(group, "")
        foreign = [choice for choice in names(registered) if not is_ours(registered, choice)]
        choices += [(choice, _foreign_keys(group, choice)) for choice in foreign]
        marks = {default: ", the default"}
        text += [f"# {group}={choice}: keys {group}.*{marks.get(choice, '')}\n{content}" for choice, content in choices]
    text[1:1] = [
        root.joinpath(f"{part}.yaml").read_text() for part in re.findall(r"^  - ([a-z]+)$", text[0], re.MULTILINE)
    ]
    # lines for Hydra and for the registry, not for the user
    skipped = re.compile(r"^( *type: \w+\n|# @package.*\n|defaults:\n(  - .*\n)+\n?)", re.MULTILINE)
    keys = "\n".join(skipped.sub("", part) for part in text)
    return f"# KEY=VALUE, in any order; the values below are the defaults, those of ??? must be given\n{keys}"


def _foreign_keys(group: str, choice: str) -> str:
    """Return the keys of a type of another package, or why it does not load."""
    try:
        return OmegaConf.to_yaml(option(group, choice))
    except InputError as error:
        return f"# {error}"
