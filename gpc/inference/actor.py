"""The actor of the rollout engine: all lanes in one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpc.composition.align import AlignedMember
from gpc.composition.composed import ComposedPolicy
from gpc.errors import InputError
from gpc.inference.chunk import sample_actions
from gpc.inference.settings import Sampling
from gpc.types import Array

BATCH_MULTIPLE = (
    16  # batches are padded to a multiple: a row's result is then bitwise the same whatever shares its batch
)


def pad_batch(rows: Array) -> Array:
    """Row numbers, repeated up to a multiple of `BATCH_MULTIPLE`."""
    return np.resize(rows, -(-len(rows) // BATCH_MULTIPLE) * BATCH_MULTIPLE)


@dataclass(frozen=True)
class ChunkActor:
    """Weights, observations and seeds in, executed actions out: the engine's `Actor` (one batched call for all lanes)."""

    policy: ComposedPolicy
    sampling: Sampling
    n_action_steps: int

    def __post_init__(self) -> None:
        self.sampling.check(self.policy)
        self._check(self.policy)

    def check(self, weights: Sequence[float]) -> None:
        """Raises InputError where the policies that have weight in `weights` (K,) cannot act without the others."""
        self._check(self.policy.with_weights(torch.tensor(weights, dtype=torch.float64)))

    def _check(self, policy: ComposedPolicy) -> None:
        whole = self.policy.actions
        steps = AlignedMember(policy, whole).steps
        first, ahead = steps.start + whole.start, steps.stop + whole.start
        if first > 0 or not 1 <= self.n_action_steps <= ahead:
            raise InputError(
                f"n_action_steps={self.n_action_steps}: {policy.name} predicts steps {first} to {ahead - 1} from now; "
                f"choose 1 to {ahead}"
            )
        _ = self.sampling.sigmas(policy.levels)

    def __call__(self, observation: Mapping[str, Array], weights: Array, seeds: Array, chunks: Array) -> Array:
        """observation[key] (batch, n_obs_steps, *shape), weights (batch, K) -> (batch, n_action_steps, action).

        Rows with weight on the same policies go together: a parent is sampled as itself, as if alone.
        """
        weighted = weights != 0
        spec = self.policy.actions
        actions = np.empty((len(seeds), self.n_action_steps, spec.dim))
        for members in np.unique(weighted, axis=0):
            rows = np.flatnonzero((weighted == members).all(1))
            taken = pad_batch(rows)
            policy = self.policy.with_weights(torch.from_numpy(weights[taken]))
            seen = {key: value[taken] for key, value in observation.items()}
            chunk = sample_actions(policy, self.sampling, seen, seeds[taken], chunks[taken])[: len(rows)]
            whole = AlignedMember(policy, spec).resample(torch.from_numpy(chunk)).numpy()
            actions[rows] = whole[:, -spec.start : self.n_action_steps - spec.start]
        return actions
