"""What a server tells of its policy when a client connects, and what a client takes from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from msgspec import Meta, Struct

import gpc
from gpc.errors import InputError
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.schema import convert
from gpc.score.noise import NoiseLevels
from gpc.serve.codec import PROTOCOL

Metadata = Mapping[str, Any]


def policy_metadata(policy: Policy) -> dict[str, Any]:
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


Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Size = Annotated[int, Meta(ge=0)]


class ServedPolicy(Struct):
    """The policy of a server, as its metadata describe it; the limits are those of the specs, not the server's."""

    policy: Text
    fingerprint: Annotated[str, Meta(min_length=1, max_length=100_000)]  # of a composition it has those of all members
    actions: ActionSpec
    observations: dict[Text, tuple[Size, ...]]
    n_obs_steps: int
    levels: NoiseLevels

    @property
    def spec(self) -> ObservationSpec:
        """The observations that the policy reads."""
        return ObservationSpec(self.observations, self.n_obs_steps)


def check_metadata(metadata: Metadata, url: str) -> ServedPolicy:
    """Check the metadata of a server.

    Raises:
        InputError: the server is none of gpc's or of another version, or does not describe a policy within gpc's limits.
    """
    if metadata.get("protocol") != PROTOCOL:
        raise InputError(
            f"policy server {url} is no gpc serve of this version; openpi's own server does not say what its policy is"
        )
    where = f"policy server {url}"
    served = convert(ServedPolicy, metadata, where)
    try:
        _ = served.spec
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return served
