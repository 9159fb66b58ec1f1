"""From a configuration to objects: policies, a composition, an environment, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from gpc.commands.config import load_config, plain
from gpc.composition.composed import Composition, as_composition, compose
from gpc.composition.steering import steer
from gpc.errors import InputError
from gpc.inert import Console, file_name
from gpc.inference.settings import Sampling
from gpc.objects import build, choose, settings_of, split_type
from gpc.policy.adapt import check_names, rename, to_absolute, with_action_names
from gpc.policy.env_spec import EnvSpec
from gpc.policy.load import load_policy
from gpc.policy.spec import Policy
from gpc.registry import COMPOSERS, load_entry
from gpc.rollout.engine import Engine
from gpc.rollout.executors import Executor, Local, Ray
from gpc.weights.simplex import Weights

EXECUTORS = {"local": Local, "ray": Ray}
BY_POLICY = {"origin": "OBSERVATION", "action_names": "[x,y,z]", "steer": "{cost: smoothness, scale: 1}"}
"""The keys that say something of policies by their names, and how one looks."""


def sampling_of(config: DictConfig) -> Sampling:
    """Return the sampler of a configuration."""
    return build(Sampling, plain(config.sampler), "sampler")


def engine_of(config: DictConfig) -> Engine:
    """Return the rollout engine of a configuration."""
    return build(Engine, plain(config.engine), "engine")


def executor_of(config: DictConfig) -> Executor:
    """Return the executor of a configuration."""
    executor: Executor = choose(EXECUTORS, plain(config.executor), "executor")
    return executor


def env_of(config: DictConfig) -> EnvSpec:
    """Return the environment of a configuration; of type "policy" it stands for the simulator of the checkpoints."""
    return build(EnvSpec, plain(config.env), "env", rename_map=plain(config.rename_map))


def env_named(name: str, overrides: Sequence[str] = ()) -> EnvSpec:
    """Return an environment by name ("pusht", "lift"), with keys and values as on the command line."""
    return env_of(load_config("evaluate", [f"env={name}", *overrides, "policies=[none]"]))


def composed(node: DictConfig, policies: Sequence[Policy], weights: Sequence[float] | None = None) -> Composition:
    """Return policies under the composer of a configuration; equal weights if none are given."""
    name, settings = split_type(plain(node), "composer")
    kind = load_entry(COMPOSERS, "composer", name)
    known = settings_of(kind)
    extra = {"weights": () if weights is None else weights} if "weights" in known else {}
    if "policies" in known:  # a policy, not a composer of denoised actions
        policy: Composition = build(kind, settings, "composer", policies=policies, **extra)
        return policy
    return as_composition(compose(policies, build(kind, settings, "composer", **extra)))


def loaded(config: DictConfig) -> list[Policy]:
    """The policies that a configuration names; InputError where it names none."""
    if isinstance(config.policies, str):
        raise InputError(f"policies={config.policies} must be a list, as in 'policies=[{config.policies}]'")
    policies = [load_policy(source) for source in config.policies]
    if not policies:
        raise InputError("policies=[] is empty; name at least one")
    return policies


def adapted(settings: Mapping[str, Any], policies: Sequence[Policy], others: Sequence[Policy] = ()) -> list[Policy]:
    """The policies as `rename_map` has their observations, and as each key of `BY_POLICY` has each of them.

    Raises InputError where a name is none of all policies'.
    """
    by_policy: dict[str, dict[str, Any]] = {policy.name: {} for policy in policies}
    for key, example in BY_POLICY.items():
        given = settings.get(key) or {}
        if not isinstance(given, dict):
            raise InputError(f"{key}={given} must go by policy, as in '{key}={{{policies[0].name}: {example}}}'")
        check_names(key, given, [*policies, *others])
        for name in given.keys() & by_policy.keys():
            by_policy[name][key] = given[name]
    return [_adapted(rename(policy, settings["rename_map"]), by_policy[policy.name]) for policy in policies]


def _adapted(policy: Policy, settings: Mapping[str, Any]) -> Policy:
    if "origin" in settings:
        policy = to_absolute(policy, settings["origin"])
    if "action_names" in settings:
        policy = with_action_names(policy, settings["action_names"])
    if "steer" in settings:
        given, known = settings["steer"], ("cost", "scale", "spread")
        if not isinstance(given, Mapping) or "cost" not in given or not set(given) <= set(known):
            example = f"'steer={{{policy.name}: {BY_POLICY['steer']}}}'"
            raise InputError(f"steer of {policy.name} takes {', '.join(known)}, not {given}; give it as in {example}")
        policy = steer(policy, **given)
    return policy


def say_notes(policy: Composition, console: Console) -> None:
    """What is approximate about a composition."""
    for note in filter(None, (member.warning for member in policy.members)):
        console.print(f"note: {note}", soft_wrap=True)


def compose_from(config: DictConfig, console: Console) -> Composition:
    """The composition that a configuration names, under its weights, to be asked for chunks from outside.

    A policy of weight 0 is removed. Notes on what is approximate are printed.

    Raises:
        InputError: the policies that have weight lack a dimension.
    """
    policies = adapted(plain(config), loaded(config))
    weights = weights_of(config, len(policies))
    whole = composed(config.composer, policies, weights)
    policy = whole.with_weights(torch.tensor(weights, dtype=torch.float64))
    say_notes(policy, console)
    return policy


def weights_of(config: DictConfig, count: int) -> Weights:
    """The weights that a configuration gives `count` policies; one alone needs none."""
    given = [1.0] if config.weights is None and count == 1 else config.weights
    if given is None:
        raise InputError(f"{count} policies need weights, as in 'weights=[{','.join(['0.5'] * 2)}]'")
    return numbers(given)


def folder_of(config: DictConfig, kind: str, env: str, names: Sequence[str]) -> Path:
    """Return the run folder that a configuration names, or one in runs/ whose name is made of environment and policies."""
    return Path(config.run_dir or Path("runs", file_name(f"{kind}-{env.lower()}-{'+'.join(names)}")))


def numbers(weights: Sequence[Any]) -> Weights:
    """Weights as the configuration has them; InputError where one is no number."""
    if not all(isinstance(w, int | float) for w in weights):
        raise InputError(f"weights=[{', '.join(map(str, weights))}] must be numbers, as in 'weights=[0.4,0.6]'")
    return tuple(float(w) for w in weights)
