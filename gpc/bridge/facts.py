"""What a server tells of its policy when a client connects, and what a client reads from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import gpc
from gpc.bridge.wire import PROTOCOL
from gpc.errors import InputError
from gpc.noise import NoiseLevels
from gpc.policy import ActionSpec, ObservationSpec, Policy

Facts = Mapping[str, Any]


def describe(policy: Policy) -> dict[str, Any]:
    """What a client must know of a policy, and all that a remote member of a composition is."""
    spec = policy.observations
    return {
        "server": f"gpc {gpc.__version__}",
        "protocol": PROTOCOL,
        "policy": policy.name,
        "fingerprint": policy.fingerprint,
        "actions": asdict(policy.actions),
        "observations": {key: list(shape) for key, shape in spec.shapes.items()},
        "n_obs_steps": spec.n_obs_steps,
        "levels": asdict(policy.levels),
    }


def check(facts: Facts, url: str) -> None:
    """Raises InputError where the server is none of gpc's, or of another version."""
    if facts.get("protocol") != PROTOCOL:
        raise InputError(f"{url} is no gpc serve of this version; openpi's own server does not say what its policy is")


def actions_of(facts: Facts) -> ActionSpec:
    """Meaning of a chunk there."""
    return ActionSpec(**_tuples(facts["actions"]))


def observations_of(facts: Facts) -> ObservationSpec:
    """What is read there."""
    return ObservationSpec(_tuples(facts["observations"]), facts["n_obs_steps"])


def levels_of(facts: Facts) -> NoiseLevels:
    """Where the policy was trained."""
    return NoiseLevels(**_tuples(facts["levels"]))


def _tuples(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tuples have travelled as lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
