"""Best of N: sample several chunks and keep one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpc.composition.composed import ComposedPolicy
from gpc.composition.inpainting import InpaintTarget
from gpc.composition.steering import cost_name, evaluate_cost, load_cost
from gpc.errors import InputError
from gpc.policy.spec import Observation, Policy
from gpc.score.keyed_noise import NoiseKeys

MOST = 1024  # chunks


@dataclass(frozen=True)
class BestOf:
    """Sample `n` chunks as one batch and keep one of them.

    Attributes:
        n: Number of chunks, 2 to 1024.
        cost: Keep the chunk of least cost: a `gpc.composition.steering.Cost` or the name of one. Without a cost the medoid
            is kept.

    Raises:
        InputError: If `n` is out of its range, or the cost is neither a cost nor a name.
    """

    n: int
    cost: Any = None

    def __post_init__(self) -> None:
        if not 2 <= self.n <= MOST:
            raise InputError(f"sampler.best_of.n={self.n}: choose a number from 2 to {MOST}")
        if not (self.cost is None or isinstance(self.cost, str) or callable(self.cost)):
            raise InputError(f"sampler.best_of.cost={self.cost} is neither a cost nor the name of one")

    def check(self) -> None:
        """Check that the cost exists.

        Raises:
            InputError: If its name is unknown.
        """
        _ = self.cost and load_cost(self.cost)

    def tile(
        self,
        policy: Policy,
        observation: Observation,
        noise: Tensor,
        target: InpaintTarget | None,
        keys: NoiseKeys | None,
    ) -> tuple[Policy, Observation, Tensor, InpaintTarget | None, NoiseKeys | None]:
        """Repeat a batch `n` times.

        Noise (n * draws, batch, ...) becomes (draws, n * batch, ...).
        """
        repeated = {key: value.repeat(self.n, *[1] * (value.ndim - 1)) for key, value in observation.items()}
        draws = noise.reshape(self.n, -1, *noise.shape[1:]).transpose(0, 1).flatten(1, 2)
        policy = policy.tile(self.n) if isinstance(policy, ComposedPolicy) else policy
        return policy, repeated, draws, target and target.tile(self.n), keys and keys.tile(self.n)

    def choose(self, x: Tensor, policy: Policy, observation: Observation) -> Tensor:
        """Return one of the `n` chunks of each row, (batch, horizon, action).

        Args:
            x: Normalised chunks (n * batch, horizon, action).
            policy: The policy of the chunks.
            observation: The repeated observation.
        """
        chunks = x.reshape(self.n, -1, *x.shape[1:])
        if self.cost is None:
            best = medoid(chunks)
        else:
            cost = evaluate_cost(load_cost(self.cost), cost_name(self.cost), policy.actions.decode(x), observation)
            best = cost.reshape(self.n, -1).argmin(0)
        return chunks[best, torch.arange(chunks.shape[1])]


def medoid(chunks: Tensor) -> Tensor:
    """Return the number of the chunk with the least sum of distances to the others.

    The medoid is a consensus that is itself a sample, unlike the mean.

    Args:
        chunks: (n, batch, horizon, action).

    Returns:
        Numbers (batch,).
    """
    flat = chunks.flatten(2).transpose(0, 1)
    return torch.cdist(flat, flat).sum(-1).argmin(-1)
