"""Noise that depends on its key alone: the same on every machine and in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from gpc.types import Array


def keyed_noise(seeds: Array, chunks: Array, count: int, chunk: tuple[int, int]) -> Tensor:
    """Draw standard normal noise (count, batch, *chunk), float64; a row depends on its (seed, chunk number) alone.

    `chunk` is (horizon, action). The same seed therefore meets the same noise under every candidate's
    weights (common random numbers).
    """
    shape = (count, *chunk)
    bits = np.random.Philox(key=0)
    generator, start = np.random.Generator(bits), bits.state  # setting a state costs a tenth of a new generator
    noise = np.empty((count, len(seeds), *shape[1:]))
    for i, key in enumerate(np.stack([seeds.astype(np.uint64), chunks.astype(np.uint64)], axis=1)):
        bits.state = start | {"state": start["state"] | {"key": key}}
        noise[:, i] = generator.standard_normal(shape)
    return torch.from_numpy(noise)


def noise_for(keys: Sequence[bytes], like: Tensor) -> Tensor:
    """Standard normal noise like (batch, ...), each row's from its key."""
    return torch.from_numpy(np.stack([_generator(key).standard_normal(like.shape[1:]) for key in keys])).to(like)


def _generator(content: bytes) -> np.random.Generator:
    key = np.frombuffer(blake2b(content, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
