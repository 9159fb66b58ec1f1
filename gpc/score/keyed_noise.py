"""Noise that depends on its key alone: the same on every machine and in every batch."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from gpc.types import Array


def keyed_noise(seeds: Array, chunks: Array, count: int, shape: tuple[int, int]) -> Tensor:
    """Draw standard normal noise whose rows depend on (seed, chunk number) alone.

    The same seed gives the same noise under the weights of every candidate (common random numbers).

    Args:
        seeds: Episode seeds (batch,).
        chunks: Numbers of the chunks in their episodes (batch,).
        count: Number of draws for each chunk.
        shape: (horizon, action).

    Returns:
        Noise (count, batch, horizon, action), float64.
    """
    bits = np.random.Philox(key=0)
    generator, start = np.random.Generator(bits), bits.state  # setting a state costs a tenth of a new generator
    noise = np.empty((count, len(seeds), *shape))
    for i, key in enumerate(np.stack([seeds.astype(np.uint64), chunks.astype(np.uint64)], axis=1)):
        bits.state = start | {"state": start["state"] | {"key": key}}
        noise[:, i] = generator.standard_normal((count, *shape))
    return torch.from_numpy(noise)


@dataclass(frozen=True)
class NoiseKeys:
    """The keys of a batch of chunks, for noise that is drawn while they are sampled.

    Attributes:
        rows: (batch, 3) uint64: seed, chunk number, number of the sample among several of one chunk.
    """

    rows: Array

    @classmethod
    def of(cls, seeds: Array, chunks: Array) -> NoiseKeys:
        """Make the keys of seeds (batch,) and chunk numbers (batch,)."""
        columns = (column.astype(np.uint64) for column in (seeds, chunks, np.zeros_like(seeds)))
        return cls(np.stack(list(columns), axis=1))

    def tile(self, count: int) -> NoiseKeys:
        """Repeat the batch `count` times, with a sample number for each repeat."""
        rows = np.tile(self.rows, (count, 1))
        rows[:, 2] = np.repeat(np.arange(count, dtype=np.uint64), len(self.rows))
        return NoiseKeys(rows)

    def draw(self, stream: str, call: int, like: Tensor) -> Tensor:
        """Draw standard normal noise, one row for each key.

        Args:
            stream: Name of the user of the noise, e.g. a policy.
            call: Number of the draw, from 1 on.
            like: Shape, dtype and device of the result.
        """
        bits = np.random.Philox(key=0)
        generator, start = np.random.Generator(bits), bits.state
        name = int.from_bytes(blake2b(stream.encode(), digest_size=8).digest())
        noise = np.empty(tuple(like.shape))
        for i, (seed, chunk, sample) in enumerate(self.rows):
            counter = np.array([0, call, sample, name], np.uint64)  # call >= 1: apart from `keyed_noise`
            bits.state = start | {"state": {"counter": counter, "key": np.array([seed, chunk], np.uint64)}}
            noise[i] = generator.standard_normal(like.shape[1:])
        return torch.from_numpy(noise).to(like)
