"""The checkpoint's own inference: what policies declare of it, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from gpc.composition.composed import leaves
from gpc.errors import InputError
from gpc.policy.spec import HasActionSteps, HasSimulator, Policy

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
    names = [name for name, _ in declared_action_steps(policies)]
    return f"as {' and '.join(names)} {'have' if len(names) > 1 else 'has'} it" if names else "gpc's default"
