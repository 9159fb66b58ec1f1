"""From a configuration to policies and a composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from gpc.commands.config import bind
from gpc.composition.composed import ComposedPolicy
from gpc.composition.steering import steer
from gpc.errors import InputError
from gpc.inert import Console, file_name
from gpc.policy.adapt import check_names, rename, to_absolute, with_action_names
from gpc.policy.load import load_policy
from gpc.policy.spec import Policy
from gpc.weights.simplex import Weights

BY_POLICY = {"origin": "OBSERVATION", "action_names": "[x,y,z]", "steer": "{cost: smoothness, scale: 1}"}
"""The keys that say something of policies by their names, and how one looks."""


def resolved(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain dicts, lists and values."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


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


def say_notes(policy: ComposedPolicy, console: Console) -> None:
    """What is approximate about a composition."""
    for note in filter(None, (member.warning for member in policy.members)):
        console.print(f"note: {note}", soft_wrap=True)


def compose_from(config: DictConfig, console: Console) -> ComposedPolicy:
    """The composition that a configuration names, under its weights, to be asked for chunks from outside.

    A policy of weight 0 is removed. Notes on what is approximate are printed.

    Raises:
        InputError: the policies that have weight lack a dimension.
    """
    policies = adapted(resolved(config), loaded(config))
    weights = weights_of(config, len(policies))
    whole: ComposedPolicy = bind(config.composer)(policies, weights)
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
