"""The checkpoint's own inference: what policies declare of it, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Final, Literal, Protocol, runtime_checkable

from gpc.composition.composed import leaves
from gpc.errors import InputError
from gpc.inference.settings import Sampling
from gpc.policy.spec import HasActionSteps, HasSimulator, Policy

NATIVE: Final = "native"
Native = Literal["native"]
"""In place of a `Sampling`: that of the policies' checkpoints."""
ACTION_STEPS = 8  # if no policy declares a number


def declared_action_steps(policies: Sequence[Policy]) -> list[tuple[str, int]]:
    """Return name and `n_action_steps` of each policy that declares it."""
    counts = [(leaf.name, _declared(leaf)) for policy in policies for leaf in leaves(policy)]
    return [(name, count) for name, count in counts if count is not None]


def _declared(policy: Policy) -> int | None:
    if isinstance(policy, HasActionSteps):
        return policy.n_action_steps
    simulator = policy.simulator if isinstance(policy, HasSimulator) else None
    return None if simulator is None else simulator.n_action_steps


def common_action_steps(policies: Sequence[Policy], key: str) -> int:
    """Return the `n_action_steps` that all policies with a declaration have.

    Args:
        policies: policies that act in one run.
        key: name of the setting that replaces it, for the error.

    Raises:
        InputError: If two policies declare different numbers.
    """
    declared = declared_action_steps(policies)
    counts = {count for _, count in declared}
    if len(counts) > 1:
        numbers = ", ".join(f"{count} of {name}" for name, count in declared)
        raise InputError(
            f"the checkpoints execute different numbers of a chunk's actions ({numbers}); give one, as in {key}={min(counts)}"
        )
    return counts.pop() if counts else ACTION_STEPS


def origin_of_action_steps(policies: Sequence[Policy]) -> str:
    """Return where `common_action_steps` comes from, as text."""
    names = dict.fromkeys(name for name, _ in declared_action_steps(policies))
    return f"as {' and '.join(names)} {'have' if len(names) > 1 else 'has'} it" if names else "gpc's default"


@runtime_checkable
class HasSampling(Protocol):
    """A policy whose checkpoint may hold its own sampler."""

    @property
    def sampling(self) -> Sampling | None:
        """Sampler of the checkpoint; None if it declares none that gpc has."""


def resolved(sampling: Sampling | Native, policies: Sequence[Policy]) -> Sampling:
    """Return a sampler; for "native" the one that all policies' checkpoints have.

    Raises:
        InputError: If a policy declares none, or two declare different ones.
    """
    if isinstance(sampling, Sampling):
        return sampling
    if sampling != NATIVE:
        raise InputError(f"sampler={sampling!r}: give a gpc.Sampling, or {NATIVE!r} for that of the checkpoints")
    samplers = [
        (leaf.name, leaf.sampling if isinstance(leaf, HasSampling) else None) for p in policies for leaf in leaves(p)
    ]
    declared = [(name, sampler) for name, sampler in samplers if sampler is not None]
    for name, sampler in samplers:
        if sampler is None:
            example = as_arguments(declared[0][1] if declared else Sampling())
            raise InputError(f"sampler=native: {name} declares no sampler that gpc has; give one, as in {example}")
    (first, common), *others = declared
    for second, other in others:
        if other != common:
            raise InputError(
                f"sampler=native: {first} has {as_arguments(common)}, {second} has {as_arguments(other)}; a run has one "
                "sampler: give one of them"
            )
    return common


def as_arguments(sampling: Sampling) -> str:
    """Return a sampler as the command line has it, without what is at its default."""
    changed = [field.name for field in fields(Sampling) if getattr(sampling, field.name) != field.default]
    return " ".join(f"sampler.{name}={getattr(sampling, name)}" for name in changed) or f"sampler={sampling.method}"
