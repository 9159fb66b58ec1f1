"""Find the one simulator that several policies were trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpc.errors import InputError
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import HasSimulator, Policy


def common_simulator(policies: Sequence[Policy], requested: EnvSpec) -> EnvSpec:
    """Return the simulator that all policies were trained for.

    Of several checkpoints the longest `max_steps` counts, and an option that only one names is taken from it.

    Args:
        policies: policies whose checkpoints name a simulator.
        requested: numbers that replace those of the checkpoints, unless they are None.

    Raises:
        InputError: If a checkpoint names no simulator, or two name different ones.
    """
    specs: list[EnvSpec] = []
    options: dict[str, Any] = {}
    for policy in policies:
        spec = policy.simulator if isinstance(policy, HasSimulator) else None
        if spec is None:
            raise InputError(f"the checkpoint of {policy.name} names no simulator; name one, as in env=lift")
        entries = spec.options or {}
        if specs and (
            spec.type != specs[0].type or any(options.get(key, value) != value for key, value in entries.items())
        ):
            one, other = _first_difference(specs[0], spec)
            raise InputError(
                f"{policies[0].name} was trained for {one}, {policy.name} for {other}; name one, as in env=lift"
            )
        specs.append(spec)
        options |= entries
    max_steps = requested.max_steps or max(filter(None, (spec.max_steps for spec in specs)))
    return replace(specs[0], n_action_steps=requested.n_action_steps, max_steps=max_steps, options=options)


def _first_difference(one: EnvSpec, other: EnvSpec) -> tuple[str, str]:
    """Return both names and, if they are equal, the first option that differs."""
    if one.name != other.name:
        return one.name, other.name
    first, second = _leaves(one.options, "options"), _leaves(other.options, "options")
    key = next((key for key in first | second if first.get(key) != second.get(key)), "type")
    return f"{one.name} with {key}={first.get(key)}", f"{other.name} with {key}={second.get(key)}"


def _leaves(node: Any, path: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {path: node}
    return {leaf: value for key, item in node.items() for leaf, value in _leaves(item, f"{path}.{key}").items()}
