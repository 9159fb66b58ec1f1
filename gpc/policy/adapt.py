"""Views of a policy: another name, other observation names, names of dimensions, moves as targets."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from gpc.errors import InputError, suggest
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import (
    ActionSpec,
    HasFolder,
    HasSimulator,
    Observation,
    ObservationSpec,
    Policy,
    is_linear,
    is_stochastic,
    policy_repr,
    prior_mean_of,
)
from gpc.score.denoiser import Clamp, Denoiser, Translated
from gpc.score.noise import NoiseLevels

LAYOUT = re.compile(r"checkpoints|models|pretrained_model|last|snapshots|\.hydra")
"""Folders that trainers make in every run."""
COUNTED = re.compile(r"[\d\W_]*|[0-9a-f]{40}")
"""Names that are a step, a time or a commit."""


def check_names(key: str, wanted: Iterable[str], policies: Sequence[Policy]) -> None:
    """Check that the names under a key of the configuration are names of policies.

    Raises:
        InputError: If there is no policy of a name.
    """
    names = [policy.name for policy in policies]
    for name in set(wanted) - set(names):
        raise InputError(f"{key} goes by policy; there is no {name!r}{suggest(name, names)}")


def condition_of(policy: Policy, observation: Observation) -> Denoiser:
    """Encode one batch of observations by a policy."""
    return policy.condition(observation)


@dataclass(frozen=True)
class PolicyView:
    """A policy with other specs; made by the functions below and by `gpc.steer`.

    Attributes:
        policy: the policy behind the view.
        actions: action spec of the view.
        observations: observation spec of the view.
        suffix: what the view adds to the policy's fingerprint.
        condition_fn: `condition` of the view, of its policy.
        prior_mean_fn: `prior_mean` of the view; None for the policy's.
        display_name: name of the view; None for the policy's.
    """

    policy: Policy
    actions: ActionSpec
    observations: ObservationSpec
    suffix: str
    condition_fn: Callable[[Policy, Observation], Denoiser] = condition_of
    prior_mean_fn: Callable[[Observation], Tensor | None] | None = None
    display_name: str | None = None

    def __repr__(self) -> str:
        return policy_repr(self)

    @property
    def name(self) -> str:
        """Name in reports."""
        return self.display_name or self.policy.name

    @property
    def levels(self) -> NoiseLevels:
        """Noise levels of the policy."""
        return self.policy.levels

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the policy, with the suffix."""
        return f"{self.policy.fingerprint} {self.suffix}".rstrip()

    @property
    def folder(self) -> Path | None:
        """Folder that holds the policy's files; None if it is not known."""
        return place_of(self.policy)

    @property
    def simulator(self) -> EnvSpec | None:
        """Simulator of the policy, if its checkpoint names one."""
        return self.policy.simulator if isinstance(self.policy, HasSimulator) else None

    @property
    def stochastic(self) -> bool:
        """True if the policy's denoiser follows a batch along the noisy steps of an SDE."""
        return is_stochastic(self.policy)

    @property
    def linear(self) -> bool:
        """True if a cost can steer the policy's denoised action."""
        return is_linear(self.policy)

    def condition(self, observation: Observation) -> Denoiser:
        """Encode one batch of observations."""
        return self.condition_fn(self.policy, observation)

    def prior_mean(self, observation: Observation) -> Tensor | None:
        """Return the mean of the initial noise."""
        return self.prior_mean_fn(observation) if self.prior_mean_fn else prior_mean_of(self.policy, observation)


def distinct(policies: Sequence[Policy]) -> list[Policy]:
    """Return policies under names that differ.

    Policies of one name are named by the folder of their training; what is still equal is numbered. Other names stay.
    """
    names = [policy.name for policy in policies]
    taken = {name for name, count in Counter(names).items() if count == 1}
    doubles = [i for i, name in enumerate(names) if name not in taken]
    for name in {names[i] for i in doubles}:
        group = [i for i in doubles if policies[i].name == name and place_of(policies[i])]
        for i, new in zip(group, _folder_names(name, [policies[i] for i in group]), strict=True):
            names[i] = new
    for i in doubles:
        numbered = (f"{names[i]}-{number}" for number in itertools.count(2))
        names[i] = next(name for name in itertools.chain([names[i]], numbered) if name not in taken)
        taken.add(names[i])
    return [_named(policy, name) for policy, name in zip(policies, names, strict=True)]


def place_of(policy: Policy) -> Path | None:
    """Return the folder of a policy's files; None if it is not known."""
    return policy.folder if isinstance(policy, HasFolder) else None


def _folder_names(name: str, policies: Sequence[Policy]) -> list[str]:
    """Return the nearest folders that tell policies apart, or name and folders."""
    folders = [folder.absolute() for policy in policies if (folder := place_of(policy))]
    shared = len(Path(os.path.commonpath(folders)).parts) if folders else 0
    tails = [[part for part in folder.parts[shared:] if not LAYOUT.fullmatch(part)] for folder in folders]
    for depth in range(1, max(map(len, tails), default=0) + 1):
        names = [tail[-depth] if len(tail) >= depth else "" for tail in tails]
        if len({*names}) == len(names) and not any(map(COUNTED.fullmatch, names)):
            return names
    return ["-".join([name, *tail]) for tail in tails]


def _named(policy: Policy, name: str) -> Policy:
    if name == policy.name:
        return policy
    return PolicyView(policy, policy.actions, policy.observations, "", display_name=name)


def rename(policy: Policy, names: Mapping[str, str]) -> Policy:
    """Rename the observation keys of a policy.

    Args:
        policy: a policy.
        names: the policy's key -> the environment's key.

    Returns:
        The policy itself if it reads none of the keys in `names`.

    Raises:
        InputError: If two keys of the policy would get one name.
    """
    shapes = policy.observations.shapes
    used = {key: names[key] for key in sorted(shapes) if key in names}
    if not used:
        return policy
    renamed = [names.get(key, key) for key in shapes]
    double = sorted({key for key in renamed if renamed.count(key) > 1})
    if double:
        raise InputError(
            f"rename_map gives {policy.name} the key {double[0]!r} for more than one of {', '.join(shapes)}"
        )

    def original(observation: Observation) -> Observation:
        return {key: observation[names.get(key, key)] for key in shapes}

    def condition(policy: Policy, observation: Observation) -> Denoiser:
        return policy.condition(original(observation))

    def prior_mean(observation: Observation) -> Tensor | None:
        return prior_mean_of(policy, original(observation))

    images = [names.get(key, key) for key in policy.observations.images]
    observations = ObservationSpec(
        dict(zip(renamed, shapes.values(), strict=True)), policy.observations.n_obs_steps, images
    )
    return PolicyView(policy, policy.actions, observations, json.dumps(used), condition, prior_mean)


def with_action_names(policy: Policy, names: Sequence[str]) -> Policy:
    """Name the action dimensions of a policy, by which a composition matches them.

    Raises:
        InputError: If `names` is no list of names, their number is not that of the dimensions, or two are equal.
    """
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise InputError(f"action_names gives {policy.name} {names}, which is no list of names, as in [x,y,z]")
    if len(names) != policy.actions.dim:
        raise InputError(
            f"action_names gives {policy.name} {len(names)} names, it acts in {policy.actions.dim} dimensions"
        )
    actions = replace(policy.actions, names=tuple(names))
    return PolicyView(policy, actions, policy.observations, json.dumps(actions.names))


def to_absolute(policy: Policy, key: str) -> Policy:
    """Turn a policy of moves from the robot's pose into one of absolute targets.

    With b = pose / scale the denoised target is D(x - b) + b, and chunks are sampled around b.

    Args:
        policy: a policy whose moves are relative to the pose at the time of planning.
        key: observation with the pose, one number for each action dimension in the actions' units; the newest one is
        used.

    Raises:
        InputError: If the policy predicts targets already, or reads `key` in another shape.
    """
    moves, reads = policy.actions, policy.observations
    if not isinstance(key, str):
        raise InputError(f"origin gives {policy.name} {key}, which is no observation's name")
    if moves.relative is False:
        raise InputError(f"origin: {policy.name} predicts absolute targets already")
    if any(constant is not None for constant in moves.constants):
        raise InputError(
            f"origin: {policy.name} has constant moves in some dimensions, which its x cannot hold as targets"
        )
    if reads.shapes.get(key, (moves.dim,)) != (moves.dim,):
        raise InputError(
            f"origin: {policy.name} reads {key!r} as {reads.shapes[key]}, its moves have {moves.dim} dimensions"
        )

    def pose(observation: Observation) -> Tensor:
        newest = observation[key][:, -1:].double().cpu()
        return newest / newest.new_tensor(moves.scale)

    def condition(policy: Policy, observation: Observation) -> Denoiser:
        denoiser = policy.condition({name: observation[name] for name in reads.shapes})
        return Translated(Clamp(denoiser, moves.bound) if moves.bound is not None else denoiser, pose(observation))

    observations = replace(reads, shapes={**reads.shapes, key: (moves.dim,)})
    return PolicyView(policy, replace(moves, relative=False, bound=None), observations, f"from {key}", condition, pose)
