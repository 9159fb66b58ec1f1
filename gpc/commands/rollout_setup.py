"""A composition in an environment, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

import cloudpickle
import numpy as np
from gymnasium import spaces

from gpc.commands.simulators import choices
from gpc.composition.average import AveragedChunks
from gpc.composition.composed import ComposedPolicy, Composition, as_composition, compose
from gpc.errors import GpcError, InputError, RunError, one_line, type_and_text
from gpc.inference.actor import ChunkActor
from gpc.inference.device import Device
from gpc.inference.native import Native, common_action_steps, resolved
from gpc.inference.settings import Sampling
from gpc.objects import describe, described, settings_in
from gpc.policy.adapt import PolicyView, rename
from gpc.policy.env_spec import EnvSpec
from gpc.policy.names import describe_names, fitting_names
from gpc.policy.observation import TASK, fits
from gpc.policy.spec import Policy
from gpc.registry import COMPOSERS, ENVS, load_entry, name_of
from gpc.results.summary import UNREPORTED
from gpc.rollout.env import Environment, LaneSpec, make_env
from gpc.rollout.instances import Instance
from gpc.weights.simplex import Weights, one_hot


@dataclass(frozen=True)
class RolloutSetup:
    """Policies under a composer, in an environment that offers what they read.

    Attributes:
        policy: the composition.
        env: the environment.
        lane: the environment with the observations that the policies read.
        actor: what acts in each lane of the engine.
        notes: what a user should know of the environment before it runs.
        origin: where the environment comes from, as text, if the user does not name it.
    """

    policy: Composition
    env: EnvSpec
    lane: LaneSpec
    actor: ChunkActor
    notes: tuple[str, ...] = ()
    origin: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the policies."""
        return [policy.name for policy in self.policy.policies]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the policies by name."""
        return {policy.name: _fingerprint(policy) for policy in self.policy.policies}

    @property
    def settings(self) -> dict[str, Any]:
        """What determines an episode, beside weights and seed, as plain data."""
        return {
            "policies": self.names,
            "fingerprints": self.fingerprints,
            "env": describe_env(self.env),
            "sampler": settings_in(self.actor.sampling),
            "composer": _describe_composer(self.policy, "weights"),
            **self.actor.device.settings(self.names),
        }

    def check(self, weights: Weights) -> None:
        """Check weights.

        Raises:
            InputError: If the composer does not take them, or the policies that have weight cannot act without the others.
        """
        self.actor.check(weights)

    def check_parents(self) -> None:
        """Check that each policy can act alone."""
        for i in range(len(self.names)):
            self.actor.check(one_hot(i, len(self.names)))


def prepare(
    policy: Composition,
    env: EnvSpec,
    sampling: Sampling | Native,
    opponents: Sequence[Policy] = (),
    video: int = 0,
    origin: str = "",
    device: Device = Device("cpu"),
) -> RolloutSetup:
    """Check a composition in an environment, which is built once.

    Args:
        policy: the composition.
        env: the environment.
        sampling: settings of the sampler; "native" for those of the policies' checkpoints.
        opponents: policies of the other side of a comparison, for the choice of the simulator.
        video: number of episodes to draw, for error lines; 0 draws none.
        origin: where the environment comes from, as text, if the user does not name it.
        device: where the networks compute.

    Raises:
        InputError: If policies, environment and settings do not fit.
    """
    policies = [*policy.policies, *opponents]
    device.check(policies)
    steps = env.n_action_steps or common_action_steps(policies, "env.n_action_steps")
    actor = ChunkActor(policy, resolved(sampling, policies), steps, device)
    try:
        policy, env, notes = _check_environment(policy, replace(env, n_action_steps=steps), video)
    except InputError as error:
        chosen = f"; env={env.name}, {origin}: another is named by env=, as one of {choices()}" if origin else ""
        raise InputError(f"{error}{chosen}") from None
    observations = policy.observations
    images = {key: observations.shapes[key] for key in sorted(observations.images)}
    lane = LaneSpec(env, tuple(observations.shapes), observations.n_obs_steps, _history(policy.policies), images)
    return RolloutSetup(policy, env, lane, replace(actor, policy=policy), notes, origin)


def composition_in(policy: Policy, names: Mapping[str, str] | None = None) -> Composition:
    """Return a policy as a composition, with the environment's names of observations.

    Args:
        policy: policy or composition; a policy that has no weights becomes the only member.
        names: the environment's name of an observation, by a policy's name.
    """
    composition, names = as_composition(policy), names or {}
    if isinstance(composition, AveragedChunks | ComposedPolicy):
        return with_members(composition, [rename(member, names) for member in composition.policies])
    renamed = rename(composition, names)
    return composition if renamed is composition else compose([renamed])


def with_members(composition: Composition, members: Sequence[Policy]) -> Composition:
    """Return a composition with views of its policies, if its class is gpc's."""
    if all(member is policy for member, policy in zip(members, composition.policies, strict=True)):
        return composition
    return (
        composition.with_policies(members) if isinstance(composition, AveragedChunks | ComposedPolicy) else composition
    )


def weights_in(policy: Composition) -> Weights:
    """Return the weights of a composition.

    Raises:
        InputError: If it has one row of weights for each row of a batch.
    """
    if policy.weights.ndim != 1:
        raise InputError("a composition to roll out has one weight for each policy, not one for each row of a batch")
    return tuple(policy.weights.tolist())


def describe_env(spec: EnvSpec) -> dict[str, Any]:
    """Return an environment as plain data, as a configuration has it."""
    kind, options = spec.type, spec.options or {}
    registered = kind if isinstance(kind, str) else name_of(ENVS, kind)
    if isinstance(kind, Instance):
        what, options = {"class": kind.name}, kind.settings
    else:
        what = {"type": registered} if registered else {"class": described(kind)}
    return {
        **what,
        "n_action_steps": spec.n_action_steps,
        "max_steps": spec.max_steps,
        "options": described(options),
    }


def _describe_composer(policy: Composition, *without: str) -> Any:
    """Return the composer as plain data; an average of chunks is its own composer."""
    kind = policy.composer if isinstance(policy, ComposedPolicy) else policy
    return describe(COMPOSERS, kind, without=("policies", *without))


def _fingerprint(policy: Policy) -> str:
    """Return the fingerprint of a member, with the composers of compositions in it."""
    composers = _composers_in(policy)
    return f"{policy.fingerprint} {json.dumps(composers)}" if composers else policy.fingerprint


def _composers_in(policy: Policy) -> list[Any]:
    if isinstance(policy, PolicyView):
        return _composers_in(policy.policy)
    if not isinstance(policy, Composition):
        return []
    return [
        _describe_composer(policy),
        *(composers for member in policy.policies for composers in _composers_in(member)),
    ]


def _history(policies: Sequence[Policy]) -> dict[str, int]:
    """Return how many of the last observations the policies read, by key."""
    history: dict[str, int] = {}
    for spec in (policy.observations for policy in policies):
        history |= {key: max(spec.n_obs_steps, history.get(key, 0)) for key in spec.shapes}
    return history


def _check_environment(policy: Composition, spec: EnvSpec, video: int) -> tuple[Composition, EnvSpec, tuple[str, ...]]:
    """Build the environment once and compare its spaces with the policies.

    Returns:
        The policies with the environment's names, the environment with its longest episode, and notes.
    """
    _check_pickled(spec)
    try:
        env = make_env(spec)
    except ImportError as error:
        raise InputError(f"{spec.name} needs a package that is missing ({error}); run gpc doctor") from None
    with closing(env):
        sized = replace(spec, max_steps=env.max_steps if spec.max_steps is None else spec.max_steps)
        if sized.max_steps is None:
            raise InputError(
                f"{spec.name} has no registered limit of an episode; give its longest one in steps, as in env.max_steps=300"
            )
        policy, names = _renamed(policy, _offered(env))
        sized = replace(sized, rename_map={**(spec.rename_map or {}), **names}) if names else sized
        _check_spaces(policy, sized, env)
        notes = [describe_names(names)] if names else []
        if isinstance(env, load_entry(ENVS, "env", "gymnasium")):
            notes += _rehearse(env)
        if video:
            notes += _check_picture(env, video)
    return policy, sized, tuple(notes)


def _offered(env: Environment) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an environment's observations."""
    return {key: box.shape or () for key, box in cast(spaces.Dict, env.observation_space).items()}


def _renamed(policy: Composition, offered: Mapping[str, tuple[int, ...]]) -> tuple[Composition, dict[str, str]]:
    """Return the policies with the names that fit by convention, and these."""
    names: dict[str, str] = {}
    for member in policy.policies:
        names |= fitting_names(member.observations, offered)
    return composition_in(policy, names), names


def _check_spaces(policy: Composition, spec: EnvSpec, env: Environment) -> None:
    """Compare the spaces of an environment with what the policies read and do."""
    offered = _offered(env)
    if env.action_space.shape != (policy.actions.dim,):
        actions = policy.actions
        names = f" ({', '.join(actions.names)})" if actions.names else ""
        raise InputError(
            f"{policy.name} acts in {actions.dim} dimensions{names}, {spec.name} in {env.action_space.shape}; "
            "'action_names={POLICY: [x,y]}' names which dimensions of two policies are the same"
        )
    original = {theirs: key for key, theirs in (spec.rename_map or {}).items()}
    for member in policy.policies:
        for key, shape in member.observations.shapes.items():
            size = offered.get(key)
            image = key in member.observations.images
            if size is None or not (key == TASK or fits(size, shape, image)):
                missing = _not_offered(spec.name, key, original.get(key, key), shape, offered)
                raise InputError(f"{member.name} reads {key!r} {shape}, {missing}")


def _rehearse(env: Environment) -> list[str]:
    """Reset an environment and take one step: its faults show before the episodes.

    Returns:
        Notes.
    """
    action, name, moment = cast(spaces.Box, env.action_space), getattr(env, "task", ""), "reset()"
    try:
        env.reset(seed=0)
        moment = "step()"
        middle = np.clip(np.zeros(action.shape), action.low, action.high)
        info = env.advance(middle)[3]
        moment = "its observation"
        for key, value in env.observe().items():
            box = cast(spaces.Dict, env.observation_space)[key]
            if value.shape != box.shape:
                raise InputError(f"{name} observes {key!r} as {value.shape}, its observation_space is {box.shape}")
    except GpcError as error:
        raise InputError(str(error)) from None
    except Exception as error:
        raise InputError(f"{name}: {moment} raises {type_and_text(error)}") from None
    return [] if info["is_success"] is not None else [f"{name}: {UNREPORTED}"]


def _check_pickled(spec: EnvSpec) -> None:
    """Check that an environment can be sent to a simulator process."""
    try:
        cloudpickle.dumps(spec)
    except Exception as error:
        raise InputError(
            f"{spec.name} cannot be sent to a simulator process ({one_line(error)}); give a function that makes all of it, "
            "as in gpc.evaluate(policy, make_env)"
        ) from None


def _not_offered(
    env: str, key: str, original: str, shape: tuple[int, ...], offered: Mapping[str, tuple[int, ...]]
) -> str:
    """Return what the environment offers instead, and the map to write."""
    if key in offered:
        return f"{env} offers it as {offered[key]}"
    if key == TASK:
        return f"an instruction; {env} offers none: its environment must have the text as the observation {TASK!r}"
    alike = [name for name, size in offered.items() if size == shape]
    hint = f"; if {alike[0]!r} is it, add 'rename_map={{{original}: {alike[0]}}}'" if alike else ""
    return f"{env} offers " + ", ".join(f"{name} {size}" for name, size in offered.items()) + hint


def _check_picture(env: Environment, count: int) -> list[str]:
    """Draw one picture, so that a machine that cannot draw fails before the episodes.

    Returns:
        Notes.
    """
    try:
        env.reset(seed=0)
        env.render()
    except RunError as error:
        return [f"no video: {error}"]
    except Exception as error:
        raise InputError(f"video={count}: {one_line(error)}; or choose video=0") from None
    return []
