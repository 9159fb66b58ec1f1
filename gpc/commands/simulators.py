"""Find the one simulator that several policies were trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import HasSimulator, Policy


def simulator_of(policies: Sequence[Policy], asked: EnvSpec) -> EnvSpec:
    """The one simulator that all the policies were trained for; what is not 0 in `asked` replaces the checkpoints' numbers.

    Of several, the shortest `n_action_steps` and the longest `max_steps`; an option that one alone names is taken from it.
    Raises InputError where a policy does not say, or two were trained for different ones.
    """
    specs: list[EnvSpec] = []
    options: dict[str, Any] = {}
    for policy in policies:
        spec = policy.simulator if isinstance(policy, HasSimulator) else None
        if spec is None:
            raise InputError(f"{policy.name} does not say which simulator it was trained for; name one, as in env=lift")
        own = spec.options or {}
        if specs and (spec.type != specs[0].type or any(options.get(key, own[key]) != own[key] for key in own)):
            one, other = _told_apart(specs[0], spec)
            raise InputError(
                f"{policies[0].name} was trained for {one}, {policy.name} for {other}; name one, as in env=lift"
            )
        specs.append(spec)
        options |= own
    n_action_steps = asked.n_action_steps or min(filter(None, (spec.n_action_steps for spec in specs)))
    max_steps = asked.max_steps or max(filter(None, (spec.max_steps for spec in specs)))
    return replace(specs[0], n_action_steps=n_action_steps, max_steps=max_steps, options=options)


def _told_apart(one: EnvSpec, other: EnvSpec) -> tuple[str, str]:
    """Both by name and, where that is the same, the first option that differs."""
    if one.name != other.name:
        return one.name, other.name
    first, second = _leaves(one.options, "options"), _leaves(other.options, "options")
    key = next((key for key in first | second if first.get(key) != second.get(key)), "type")
    return f"{one.name} with {key}={first.get(key)}", f"{other.name} with {key}={second.get(key)}"


def _leaves(node: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {path: node}
    return {leaf: value for key, item in node.items() for leaf, value in _leaves(item, f"{path}.{key}").items()}
