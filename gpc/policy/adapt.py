"""Views of a policy: other observation names, names of dimensions, moves as targets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from gpc.errors import InputError, suggest
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec, Policy, Simulated, centre_of
from gpc.score.denoiser import Clamp, Denoiser, Shifted
from gpc.score.noise import NoiseLevels


def check_names(key: str, given: Iterable[str], policies: Sequence[Policy]) -> None:
    """Raises InputError where a key of the configuration that goes by policy names none of these."""
    names = [policy.name for policy in policies]
    for name in set(given) - set(names):
        raise InputError(f"{key} goes by policy; there is no {name!r}{suggest(name, names)}")


@dataclass(frozen=True)
class Adapted:
    """A policy that is seen in another way: `rename`, `named`, `absolute` and `gpc.steer` make it."""

    policy: Policy
    actions: ActionSpec
    observations: ObservationSpec
    change: str  # what the fingerprint says of it
    bind: Callable[[Observation], Denoiser]
    around: Callable[[Observation], Tensor | None] | None = None  # where its actions lie, if not where the policy's do
    called: str | None = None

    @property
    def name(self) -> str:
        """The policy's, unless it is `called` otherwise."""
        return self.called or self.policy.name

    @property
    def levels(self) -> NoiseLevels:
        """The policy's."""
        return self.policy.levels

    @property
    def fingerprint(self) -> str:
        """The policy's, with the change."""
        return f"{self.policy.fingerprint} {self.change}"

    @property
    def simulator(self) -> EnvSpec | None:
        """The policy's; see `Simulated`."""
        return self.policy.simulator if isinstance(self.policy, Simulated) else None

    def condition(self, observation: Observation) -> Denoiser:
        """See `Policy`."""
        return self.bind(observation)

    def centre(self, observation: Observation) -> Tensor | None:
        """See `Centred`."""
        return self.around(observation) if self.around else centre_of(self.policy, observation)


def rename(policy: Policy, keys: Mapping[str, str]) -> Policy:
    """The policy under an environment's keys, `keys[own] = theirs`; itself where it reads none of the renamed ones.

    Raises InputError where two of its keys would become one.
    """
    own = policy.observations.shapes
    used = {key: keys[key] for key in sorted(own) if key in keys}
    if not used:
        return policy
    theirs = [keys.get(key, key) for key in own]
    twice = sorted({key for key in theirs if theirs.count(key) > 1})
    if twice:
        raise InputError(f"rename_map gives {policy.name} the key {twice[0]!r} for more than one of {', '.join(own)}")

    def back(observation: Observation) -> Observation:
        return {key: observation[keys.get(key, key)] for key in own}

    def bind(observation: Observation) -> Denoiser:
        return policy.condition(back(observation))

    def around(observation: Observation) -> Tensor | None:
        return centre_of(policy, back(observation))

    seen = replace(policy.observations, shapes=dict(zip(theirs, own.values(), strict=True)))
    return Adapted(policy, policy.actions, seen, json.dumps(used), bind, around)


def named(policy: Policy, names: Sequence[str]) -> Policy:
    """The policy with names for its action dimensions, by which they are composed with those of others.

    Raises InputError where they are no list of names, not as many as dimensions, or two are the same.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"action_names gives {policy.name} {names}, which is no list of names, as in [x,y,z]")
    if len(names) != policy.actions.dim:
        raise InputError(
            f"action_names gives {policy.name} {len(names)} names, it acts in {policy.actions.dim} dimensions"
        )
    actions = replace(policy.actions, names=tuple(names))
    return Adapted(policy, actions, policy.observations, json.dumps(actions.names), policy.condition)


def absolute(policy: Policy, key: str) -> Policy:
    """A policy of moves from where the robot is when the chunk is planned, as one of absolute targets.

    `key`: the observation that says where it is, one number for each action dimension in the actions' units; its newest
    counts. With b = observation / scale the denoised target is D(x - b) + b, and chunks are sampled around b. Raises
    InputError where the policy predicts targets already, or reads the key in another shape.
    """
    own, reads = policy.actions, policy.observations
    if not isinstance(key, str):
        raise InputError(f"origin gives {policy.name} {key}, which is no observation's name")
    if own.relative is False:
        raise InputError(f"origin: {policy.name} predicts absolute targets already")
    if reads.shapes.get(key, (own.dim,)) != (own.dim,):
        raise InputError(
            f"origin: {policy.name} reads {key!r} as {reads.shapes[key]}, its moves have {own.dim} dimensions"
        )

    def around(observation: Observation) -> Tensor:
        here = observation[key][:, -1:].double().cpu()
        return here / here.new_tensor(own.scale)

    def bind(observation: Observation) -> Denoiser:
        denoiser = policy.condition({name: observation[name] for name in reads.shapes})
        return Shifted(Clamp(denoiser, own.bound) if own.bound is not None else denoiser, around(observation))

    seen = replace(reads, shapes={**reads.shapes, key: (own.dim,)})
    return Adapted(policy, replace(own, relative=False, bound=None), seen, f"from {key}", bind, around)
