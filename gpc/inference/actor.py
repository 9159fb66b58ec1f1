"""The actor of the rollout engine: all lanes in one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from gpc.composition.align import AlignedMember
from gpc.composition.composed import Composition
from gpc.errors import InputError
from gpc.inference.chunk import sample_actions
from gpc.inference.device import Device, place
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy
from gpc.types import Array

BATCH_MULTIPLE = 16  # of rows: the result of a row is then bitwise the same in every batch


def pad_batch(rows: Array) -> Array:
    """Repeat row numbers up to a multiple of `BATCH_MULTIPLE`."""
    return np.resize(rows, -(-len(rows) // BATCH_MULTIPLE) * BATCH_MULTIPLE)


@dataclass(frozen=True)
class ChunkActor:
    """Turn weights, observations and seeds into actions, one call for all lanes.

    Attributes:
        policy: A composition.
        sampling: Settings of the sampler.
        n_action_steps: Number of actions of a chunk that are executed.
        device: Where the networks compute.

    Raises:
        InputError: If the policy, the sampler and `n_action_steps` do not fit.
    """

    policy: Composition
    sampling: Sampling
    n_action_steps: int
    device: Device = Device("cpu")

    def __post_init__(self) -> None:
        self.sampling.check(self.policy)
        self._check(self.policy)

    @cached_property
    def placed(self) -> Composition:
        """The composition with its networks on the device, from the first use on."""
        return cast(Composition, place(self.policy, self.device))

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another machine, which places the networks itself."""
        return {key: value for key, value in vars(self).items() if key != "placed"}

    def check(self, weights: Sequence[float]) -> None:
        """Check the weights (K,) of a candidate; a call does not check them again.

        Raises:
            InputError: If the weights are not what the composition takes, or the policies with weight cannot act without the
                others.
        """
        self.policy.check_weights(weights)
        self._check(self.policy.with_weights(torch.tensor(weights, dtype=torch.float64)))

    def _check(self, policy: Policy) -> None:
        full = self.policy.actions
        steps = AlignedMember(policy, full).steps
        first, stop = steps.start + full.start, steps.stop + full.start
        if first > 0 or not 1 <= self.n_action_steps <= stop:
            raise InputError(
                f"n_action_steps={self.n_action_steps}: {policy.name} predicts steps {first} to {stop - 1} from now; "
                f"choose 1 to {stop}"
            )
        _ = self.sampling.sigmas(policy.levels)

    def __call__(self, observation: Mapping[str, Array], weights: Array, seeds: Array, chunks: Array) -> Array:
        """Return the actions to execute.

        Rows with weight on the same policies are sampled together, without the other policies: a parent is sampled as if
        alone.

        Args:
            observation: key -> (batch, n_obs_steps, *shape).
            weights: (batch, K).
            seeds: Episode seeds (batch,).
            chunks: Numbers of the chunks in their episodes (batch,).

        Returns:
            Actions (batch, n_action_steps, action), in the environment's units.
        """
        weighted = weights != 0
        spec = self.policy.actions
        actions = np.empty((len(seeds), self.n_action_steps, spec.dim))
        for members in np.unique(weighted, axis=0):
            rows = np.flatnonzero((weighted == members).all(1))
            batch = pad_batch(rows)
            policy = self.placed.with_weights(torch.from_numpy(weights[batch]))
            batched = {key: value[batch] for key, value in observation.items()}
            chunk = sample_actions(policy, self.sampling, batched, seeds[batch], chunks[batch])[: len(rows)]
            full = AlignedMember(policy, spec).resample(torch.from_numpy(chunk)).numpy()
            actions[rows] = full[:, -spec.start : self.n_action_steps - spec.start]
        return actions
