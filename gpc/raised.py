"""Raising: a network that was trained with one noise level, for actions whose dimensions hold different ones."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from gpc.denoise import Denoiser

SPREAD = 0.005  # taken for the spread of normalised actions; less than most have (docs/design.md, section 1)


@dataclass(frozen=True)
class Raised:
    """The denoiser of y = y0 + noise of level q = ratios sigma, from one that knows a single level: it is told p = max q.

    It sees y + extra, of noise p in all dimensions. For N(m, s^2) it would move y by p^2 / (s^2 + p^2) of the way to m, where
    q^2 / (s^2 + q^2) is due, and follow `extra` by s^2 / (s^2 + p^2). Both are mended as if s were `SPREAD`. That is exact for this
    s, and for every density in the limits: far above s, where the whole way is due, and far below, where a way is
    the noise squared times the score.
    """

    denoiser: Denoiser
    ratios: tuple[float, ...]

    def __call__(self, y: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`; sigma is ()."""
        q, p, variance = sigma * y.new_tensor(self.ratios), sigma * max(self.ratios), SPREAD**2
        extra = (p**2 - q**2).clamp(min=0).sqrt() * noise_for(y, p)
        follows = variance / (variance + p**2)
        due = (variance + p**2) / (variance * (p / q) ** 2 + p**2)
        return y + due * (self.denoiser(y + extra, p) - y - follows * extra)


def noise_for(rows: Tensor, level: Tensor) -> Tensor:
    """Standard normal noise like `rows` (batch, ...), each row's from what it holds and the level ()."""
    # A denoiser knows neither seed nor batch. Keyed by the row, its noise is new at every call, the same when a run is repeated,
    # and nothing else in the batch has a part in it.
    ending = level.cpu().numpy().tobytes()
    drawn = [_generator(row.tobytes() + ending).standard_normal(rows.shape[1:]) for row in rows.cpu().numpy()]
    return torch.from_numpy(np.stack(drawn)).to(rows)


def _generator(content: bytes) -> np.random.Generator:
    key = np.frombuffer(blake2b(content, digest_size=16).digest(), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
