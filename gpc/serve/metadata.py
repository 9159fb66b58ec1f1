"""The description of a policy that a server sends when a client connects, and the check of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Annotated, Any

from msgspec import Meta, Struct

from gpc.errors import InputError
from gpc.inference.native import NATIVE, declared_action_steps, resolved
from gpc.inference.settings import Sampling
from gpc.objects import settings_in
from gpc.policy.spec import ActionSpec, ObservationSpec, Policy
from gpc.schema import convert
from gpc.score.noise import NoiseLevels
from gpc.serve.codec import PROTOCOL

Metadata = Mapping[str, Any]


def policy_metadata(policy: Policy) -> dict[str, Any]:
    """Return the description of a policy: all that a client or a composition needs."""
    spec, counts = policy.observations, {count for _, count in declared_action_steps([policy])}
    return {
        "server": f"gpc {version('gpc')}",
        "protocol": PROTOCOL,
        "policy": policy.name,
        "fingerprint": policy.fingerprint,
        "actions": asdict(policy.actions),
        "observations": {key: list(shape) for key, shape in spec.shapes.items()},
        "images": sorted(spec.images),
        "n_obs_steps": spec.n_obs_steps,
        "levels": asdict(policy.levels),
        "n_action_steps": counts.pop() if len(counts) == 1 else None,
        "sampling": _native(policy),
    }


def _native(policy: Policy) -> dict[str, Any] | None:
    try:
        return settings_in(resolved(NATIVE, [policy]))
    except InputError:  # it has none, or its members differ
        return None


Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Size = Annotated[int, Meta(ge=0)]


class ServedPolicy(Struct):
    """The policy of a server, as its metadata describe it, within the specs' limits."""

    policy: Text
    fingerprint: Annotated[str, Meta(min_length=1, max_length=100_000)]  # of a composition it has those of all members
    actions: ActionSpec
    observations: dict[Text, tuple[Size, ...]]
    n_obs_steps: int
    levels: NoiseLevels
    n_action_steps: Annotated[int, Meta(ge=1, le=10**4)] | None = None
    sampling: Sampling | None = None
    images: list[Text] | None = None  # not sent by servers of earlier versions

    def __post_init__(self) -> None:
        if self.sampling is not None and self.sampling.best_of is not None:
            raise ValueError("its own sampler names a cost")

    @property
    def spec(self) -> ObservationSpec:
        """The observations that the policy reads."""
        spec = ObservationSpec(self.observations, self.n_obs_steps)
        return spec if self.images is None else replace(spec, images=self.images)


def check_metadata(metadata: Metadata, url: str) -> ServedPolicy:
    """Return the policy that the metadata of a server describe.

    Raises:
        InputError: If the server is none of gpc's or of another version, or does not describe a policy within gpc's limits.
    """
    if metadata.get("protocol") != PROTOCOL:
        raise InputError(
            f"policy server {url} is no gpc serve of this version; openpi's own server does not describe its policy"
        )
    where = f"policy server {url}"
    served = convert(ServedPolicy, metadata, where)
    try:
        _ = served.spec
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return served
