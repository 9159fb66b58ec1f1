"""From a configuration to objects: policies, a composition, an environment, settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import torch

from gpc.commands.checks import sources_of, weights_of
from gpc.commands.config import Config, load_config, options, plain
from gpc.commands.rollout_setup import RolloutSetup, prepare
from gpc.commands.simulators import POLICY, common_simulator, env_named, env_of
from gpc.composition.composed import Composition, as_composition, compose
from gpc.composition.steering import steer
from gpc.demonstrations import check
from gpc.errors import InputError, suggest
from gpc.inert import Console, file_name
from gpc.inference.device import Device
from gpc.inference.native import NATIVE, Native, as_arguments, origin_of_action_steps
from gpc.inference.settings import Sampling
from gpc.objects import build, build_registered, choose, settings_of, split_type
from gpc.policy.adapt import check_names, distinct, rename, to_absolute, with_action_names
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import load_policy
from gpc.policy.spec import Policy
from gpc.registry import COMPOSERS, ENVS, SEARCHES, load_entry, names
from gpc.rollout.engine import Engine
from gpc.rollout.executors import Executor, Local, Ray
from gpc.rollout.instances import instance, registered_here
from gpc.types import DEVICE_KEYS
from gpc.weights.searches import Search
from gpc.weights.simplex import Weights

EXECUTORS = {"local": Local, "ray": Ray}
PER_POLICY_KEYS = {"origin": "OBSERVATION", "action_names": "[x,y,z]", "steer": "{cost: smoothness, scale: 1}"}
"""Keys that hold settings by policy, and an example of each."""


def sampling_of(config: Config) -> Sampling | Native:
    """Return the sampler of a configuration."""
    settings = plain(config["sampler"])
    if settings == {"method": NATIVE}:
        return NATIVE
    if settings["method"] == NATIVE:
        raise InputError("sampler.method=native: write sampler=native, whose settings are all the checkpoints'")
    return build(Sampling, settings, "sampler")


def sampler_named(sampler: Sampling | str) -> Sampling | Native:
    """Return a sampler; a name has the settings of `sampler=`.

    Raises:
        InputError: If the name is unknown, or it is neither.
    """
    return sampler if isinstance(sampler, Sampling) else sampling_of(_chosen("sampler", sampler, "a gpc.Sampling"))


def search_named(search: Search | str) -> Search:
    """Return a search, not started; a name has the settings of `search=`.

    Raises:
        InputError: If the name is unknown.
    """
    return search_of(_chosen("search", search, "a search")) if isinstance(search, str) else search


def _chosen(group: str, name: object, kind: str) -> Config:
    """Return a configuration with the named option of a group."""
    known = options(group)
    if not isinstance(name, str):
        raise InputError(f"{group}={name!r}: give {kind}, or one of {', '.join(known)}")
    if name not in known:
        raise InputError(f"unknown {group} {name!r}{suggest(name, known)}")
    return load_config("search", [f"{group}={name}", "policies=[none]"])


def engine_of(config: Config) -> Engine:
    """Return the rollout engine of a configuration."""
    return build(Engine, plain(config["engine"]), "engine")


def executor_of(config: Config) -> Executor:
    """Return the executor of a configuration."""
    executor: Executor = choose(EXECUTORS, plain(config["executor"]), "executor")
    return executor


def devices_of(config: Config) -> tuple[Device, Device]:
    """Return the devices of the two sides of a comparison.

    A key holds one value for both, or a list of two.

    Raises:
        InputError: If a list has another length, or a name or dtype is unknown.
    """
    settings = {key: plain(config)[key] for key in DEVICE_KEYS}
    for key, value in settings.items():
        if isinstance(value, list) and len(value) != 2:
            raise InputError(f"{key}={value}: compare takes one value, or a list of two, one for each side")
    first, second = ([v[k] if isinstance(v, list) else v for v in settings.values()] for k in (0, 1))
    return Device(*first), Device(*second)


def device_of(config: Config) -> Device:
    """Return where the networks of a configuration compute.

    Raises:
        InputError: If a name or dtype is unknown, or a key holds a list, which is for `gpc compare`.
    """
    first, second = devices_of(config)
    if first != second:
        raise InputError("two values of device, dtype or tf32 in a list are for gpc compare; give one")
    return first


def device_under(executor: Executor, device: Device) -> Device:
    """Return where an executor's networks compute, on a cluster its nodes.

    Raises:
        InputError: If it is not there, or the actors of a cluster have no GPU for it.
    """
    if not isinstance(executor, Ray):
        device.check_here()
        return device
    name, gpus = device.name, executor.gpus
    if name == "auto":
        return replace(device, name="cuda" if gpus else "cpu")
    if isinstance(name, Mapping) or (name == "cpu") == (gpus > 0):
        raise InputError(
            f"device={name}: each actor of a cluster has one device, a GPU if executor.gpus is above 0, which is {gpus:g}"
        )
    return device


def search_of(config: Config) -> Search:
    """Return the search of a configuration, not started."""
    search: Search = build_registered(SEARCHES, plain(config["search"]), "search")
    return search


def demonstrations_of(config: Config) -> Path | None:
    """Return the held-out demonstrations of a configuration, which exist, if any."""
    return None if config["demonstrations"] is None else check(config["demonstrations"])


def spec_of(env: str | EnvSpec | gymnasium.Env[Any, Any] | Callable[..., Any]) -> EnvSpec:
    """Return the spec of an environment.

    Args:
        env: name as for `env=`, an id that the program has registered with gymnasium, a spec with any of these as its type,
            a `gymnasium.Env`, or a function or class that makes one.

    Raises:
        InputError: If it is none of these.
    """
    if isinstance(env, str):
        here = registered_here(env)
        return env_named(env) if here is None else EnvSpec(here)
    if isinstance(env, EnvSpec):
        return env if env.type in (POLICY, *names(ENVS)) else env.over(spec_of(env.type))
    if isinstance(env, gymnasium.Env):
        return EnvSpec(instance(env))
    if not callable(env):
        several = "; give one environment, not a vector of them" if hasattr(env, "num_envs") else ""
        raise InputError(f"{type(env).__name__} is no gymnasium.Env, and nothing that makes one{several}")
    return EnvSpec(env)


def composition_of(node: Mapping[str, Any], policies: Sequence[Policy], weights: Sequence[float] = ()) -> Composition:
    """Return policies under a configured composer; by default equal weights."""
    name, settings = split_type(plain(node), "composer")
    kind = load_entry(COMPOSERS, "composer", name)
    arguments = settings_of(kind)
    extra = {"weights": weights} if "weights" in arguments else {}
    if "policies" in arguments:  # a policy, not a composer of denoised actions
        policy: Composition = build(kind, settings, "composer", policies=policies, **extra)
        return policy
    return as_composition(compose(policies, build(kind, settings, "composer", **extra)))


def setup_of(
    config: Config, policies: Sequence[Policy], opponents: Sequence[Policy] = (), device: Device = Device("cpu")
) -> RolloutSetup:
    """Return loaded policies in the environment of a configuration, checked.

    Args:
        config: configuration of evaluate, search, compare or diagnose.
        policies: policies that act together.
        opponents: policies of the other side of a comparison.
        device: where the networks compute.
    """
    env, origin = common_simulator([*policies, *opponents], env_of(config))
    members = adapt_policies({**plain(config), "rename_map": env.rename_map}, policies, opponents)
    composition = composition_of(config["composer"], members)
    video = plain(config).get("video", 0)
    return prepare(composition, env, sampling_of(config), opponents, video, origin, device)


def load_policies(config: Config) -> list[Policy]:
    """Load the policies of a configuration, under names that differ.

    Raises:
        InputError: If it names none, or one does not load.
    """
    return distinct([load_policy(source) for source in sources_of(config)])


def adapt_policies(
    settings: Mapping[str, Any], policies: Sequence[Policy], others: Sequence[Policy] = ()
) -> list[Policy]:
    """Return the policies under `rename_map` and the keys of `PER_POLICY_KEYS`.

    Args:
        settings: configuration.
        policies: policies to adapt.
        others: further policies whose names the keys may hold.

    Raises:
        InputError: If a key holds the name of no policy.
    """
    by_policy: dict[str, dict[str, Any]] = {policy.name: {} for policy in policies}
    for key, example in PER_POLICY_KEYS.items():
        entries = settings.get(key) or {}
        if not isinstance(entries, dict):
            raise InputError(f"{key}={entries} must go by policy, as in '{key}={{{policies[0].name}: {example}}}'")
        check_names(key, entries, [*policies, *others])
        for name in entries.keys() & by_policy.keys():
            by_policy[name][key] = entries[name]
    return [_adapted(rename(policy, settings["rename_map"]), by_policy[policy.name]) for policy in policies]


def _adapted(policy: Policy, settings: Mapping[str, Any]) -> Policy:
    if "origin" in settings:
        policy = to_absolute(policy, settings["origin"])
    if "action_names" in settings:
        policy = with_action_names(policy, settings["action_names"])
    if "steer" in settings:
        cost, names = settings["steer"], ("cost", "scale", "spread")
        if not isinstance(cost, Mapping) or "cost" not in cost or not set(cost) <= set(names):
            example = f"'steer={{{policy.name}: {PER_POLICY_KEYS['steer']}}}'"
            raise InputError(f"steer of {policy.name} takes {', '.join(names)}, not {cost}; give it as in {example}")
        policy = steer(policy, **cost)
    return policy


def print_warnings(policy: Composition, console: Console, *weightings: Weights) -> None:
    """Print what is approximate about a composition under each weights."""
    rows = [policy.with_weights(torch.tensor(weights, dtype=torch.float64)) for weights in weightings] or [policy]
    print_notes(dict.fromkeys(note for row in rows for note in warnings_of(row)), console)


def warnings_of(policy: Composition) -> list[str]:
    """Return what is approximate about a composition, and what cannot be checked."""
    notes = [member.warning for member in policy.members if member.warning]
    undeclared = [member.policy.name for member in policy.members if member.policy.actions.relative is None]
    if 0 < len(undeclared) < len(policy.members):  # if none declares it, nothing shows that they differ
        notes.append(
            f"{', '.join(undeclared)} without a declaration whether actions are moves (delta) or absolute targets: a mixture of "
            "both would not be refused (docs/alignment.md)"
        )
    return notes


def print_notes(notes: Iterable[str], console: Console) -> None:
    """Print notes, one a line."""
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)


def print_execution(
    requested: EnvSpec,
    sampler: Sampling | Native,
    setup: RolloutSetup,
    console: Console,
    opponents: Sequence[Policy] = (),
) -> None:
    """Print what is left open: action steps, length, sampler; then notes."""
    if setup.origin:
        console.print(f"env={setup.env.name}, {setup.origin}", soft_wrap=True)
    if requested.n_action_steps is None:
        origin = origin_of_action_steps([*setup.policy.policies, *opponents])
        console.print(f"n_action_steps={setup.actor.n_action_steps}, {origin}", soft_wrap=True)
    if requested.max_steps is None:
        console.print(f"max_steps={setup.env.max_steps}, the longest episode of {setup.env.name}", soft_wrap=True)
    print_native(sampler, setup.actor.sampling, console)
    print_notes(setup.notes, console)


def print_native(sampler: Sampling | Native, sampling: Sampling, console: Console) -> None:
    """Print which sampler is the checkpoints' own, if that is requested."""
    if sampler == NATIVE:
        console.print(f"sampler=native is {as_arguments(sampling)}", soft_wrap=True)


def compose_from(config: Config, console: Console) -> Composition:
    """Return the composition of a configuration under its weights.

    A policy of weight 0 is removed. Warnings about what is approximate are printed.

    Raises:
        InputError: If the device is not here, or the policies that have weight lack a dimension.
    """
    device = device_of(config)
    device.check_here()
    policies = adapt_policies(plain(config), load_policies(config))
    device.check(policies)
    weights = weights_of(config, len(policies))
    composition = composition_of(config["composer"], policies, weights)
    print_warnings(composition, console, weights)
    return composition.with_weights(torch.tensor(weights, dtype=torch.float64))


def run_dir_of(config: Config, kind: str, env: str, names: Sequence[str], settings: Any = None) -> Path:
    """Return the run folder of a configuration.

    Args:
        config: configuration; its `run_dir` is taken as it is.
        kind: command.
        env: name of the environment.
        names: names of the policies, or of the sides.
        settings: plain data that determine the results.

    Returns:
        The folder, by default runs/KIND-ENV-POLICIES-HASH; without the hash of the settings if there are none.
    """
    run_dir: str | None = config["run_dir"]  # of the user
    if run_dir:
        return Path(run_dir)
    parts = [kind, env.lower(), "+".join(names)]
    if settings is not None:
        parts.append(hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8])
    return Path("runs", file_name("-".join(parts)))
