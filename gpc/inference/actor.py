"""The actor of the rollout engine: all lanes in one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, cast

import numpy as np
import torch

from gpc.composition.align import AlignedMember
from gpc.composition.composed import Composition
from gpc.errors import InputError
from gpc.inference.chunk import sample_actions
from gpc.inference.device import Device
from gpc.inference.placement import batch_sizes, place
from gpc.inference.settings import Sampling
from gpc.machine import cores
from gpc.policy.spec import Policy
from gpc.types import Array

BATCH_MULTIPLE = 16  # of rows: the result of a row is then bitwise the same in every batch
CORES = 4  # for each thread that samples; two policies take a core each


def sampling_threads() -> int:
    """Return how many threads share the rows of a batch on the CPU."""
    return max(1, cores() // CORES)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(64, "gpc-rows", torch.set_num_threads, (1,))


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
        return {field.name: getattr(self, field.name) for field in fields(self)}

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
        alone. On a card they are sampled at the same time, and a network computes the rows of all of them in one batch; many
        cores share them.

        Args:
            observation: key -> (batch, n_obs_steps, *shape).
            weights: (batch, K).
            seeds: Episode seeds (batch,).
            chunks: Numbers of the chunks in their episodes (batch,).

        Returns:
            Actions (batch, n_action_steps, action), in the environment's units.
        """
        actions = np.empty((len(seeds), self.n_action_steps, self.policy.actions.dim))

        def act(rows: Array) -> None:
            batch = pad_batch(rows)
            batched = {key: value[batch] for key, value in observation.items()}
            actions[rows] = self._sample(batched, weights[batch], seeds[batch], chunks[batch])[: len(rows)]

        parts, on_card = self._parts(weights != 0), bool(batch_sizes(self.placed))
        if len(parts) > 1 and (on_card or sampling_threads() > 1):
            list(_pool().map(act, parts))
        else:
            list(map(act, parts))
        return actions

    def _parts(self, weighted: Array) -> list[Array]:
        """Return row numbers, by the policies with weight, and shared by threads."""
        groups = [np.flatnonzero((weighted == members).all(1)) for members in np.unique(weighted, axis=0)]
        threads = 1 if batch_sizes(self.placed) else sampling_threads()  # a card takes all rows in one batch
        size = len(pad_batch(np.arange(-(-len(weighted) // threads))))
        return [rows[first : first + size] for rows in groups for first in range(0, len(rows), size)]

    def _sample(self, observation: Mapping[str, Array], weights: Array, seeds: Array, chunks: Array) -> Array:
        """Return the actions of rows with weight on the same policies."""
        policy, spec = self.placed.with_weights(torch.from_numpy(weights)), self.policy.actions
        chunk = sample_actions(policy, self.sampling, observation, seeds, chunks)
        full: Array = AlignedMember(policy, spec).resample(torch.from_numpy(chunk)).numpy()
        return full[:, -spec.start : self.n_action_steps - spec.start]
