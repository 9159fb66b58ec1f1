"""Find the one simulator that several policies were trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gpc.commands.config import Config, load_config, options, plain
from gpc.errors import InputError
from gpc.objects import build
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import HasSimulator, Policy

POLICY, DEFAULT = "policy", "pusht"
"""The environment that stands for the policies' own, and the one if none of them names its own."""


def env_of(config: Config) -> EnvSpec:
    """Return the environment of a configuration."""
    return build(EnvSpec, plain(config["env"]), "env", rename_map=plain(config.get("rename_map") or {}))


def env_named(name: str, overrides: Sequence[str] = ()) -> EnvSpec:
    """Return an environment by name, with overrides as on the command line."""
    return env_of(load_config("evaluate", [f"env={name}", *overrides, "policies=[none]"]))


def common_simulator(policies: Sequence[Policy], requested: EnvSpec) -> tuple[EnvSpec, str]:
    """Return the simulator of policies, and where it comes from, as text.

    It is the requested one unless its type is "policy". Else it is the one that all policies were trained for which name
    one. Of several, the longest `max_steps` counts, and an option that only one names is taken from it.

    Args:
        policies: policies that act in one run.
        requested: settings that replace those of the policies, unless they are None.

    Raises:
        InputError: If two policies name different simulators.
    """
    if requested.type != POLICY:
        return requested, ""
    known = [(policy.name, spec) for policy in policies if (spec := _simulator(policy))]
    if not known:
        known, origin = [("", env_named(DEFAULT))], "since no policy names its task"
    else:
        trained = dict.fromkeys(name for name, _ in known)
        origin = f"as {' and '.join(trained)} {'were' if len(trained) > 1 else 'was'} trained"
    (first, common), settings = known[0], dict[str, Any]()
    for name, spec in known:
        entries = spec.options or {}
        if spec.type != common.type or any(settings.get(key, value) != value for key, value in entries.items()):
            one, other = _first_difference(common, spec)
            raise InputError(f"{first} was trained for {one}, {name} for {other}; name one, as in env=lift")
        settings |= entries
    lengths = [spec.max_steps for _, spec in known if spec.max_steps is not None]
    return requested.over(replace(common, max_steps=max(lengths, default=None), options=settings)), origin


def choices() -> str:
    """Return the names for `env=`, as text."""
    return ", ".join(options("env"))


def _simulator(policy: Policy) -> EnvSpec | None:
    """Return the simulator that a policy names; one of `env=` with its settings."""
    spec = policy.simulator if isinstance(policy, HasSimulator) else None
    if spec is None or spec.options is not None or spec.type not in options("env"):
        return spec
    return env_named(str(spec.type))


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
