"""Noise matching: a network that was trained with one noise level, for dimensions with different ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Self

import numpy as np
from torch import Tensor

from gpc.score.denoiser import Wrapper, columns, with_noise_keys
from gpc.score.keyed_noise import NoiseKeys

ASSUMED_STD = 0.005  # of normalised actions; less than most have (docs/design.md, section 1)


@dataclass(frozen=True)
class NoiseMatched(Wrapper):
    """Use a network with one noise level on an x whose dimensions have less noise.

    Dimension d of x has noise of level q = `noise_ratios[d] * sigma`. Noise is added until every dimension has p =
    sigma, and its effect on the output is removed. For data N(m, s^2) the network moves x by p^2 / (s^2 + p^2) of the
    way to m where q^2 / (s^2 + q^2) is due, and follows the added noise by s^2 / (s^2 + p^2). Both are corrected with s
    = `ASSUMED_STD`. That is exact for this s, and for every density in two limits: at noise far above s (the full way
    is due) and far below s (the way is the noise squared times the score).

    Attributes:
        noise_ratios: Noise of each dimension over that of the largest, at most 1.
        stream: Name of the added noise, e.g. the policy's.
        keys: Keys of the rows. With keys every call draws new noise. Without keys the noise depends on the level alone.
    """

    noise_ratios: tuple[float, ...]
    stream: str = ""
    keys: NoiseKeys | None = None
    _calls: Iterator[int] = field(default_factory=lambda: count(1), init=False, repr=False, compare=False)

    def with_noise_keys(self, keys: NoiseKeys) -> Self:
        """Draw the added noise from these keys, from the first call on."""
        return replace(self, denoiser=with_noise_keys(self.denoiser, keys), keys=keys)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Denoise a batch of chunks; sigma is the level of the noisiest dimension."""
        p, variance = columns(sigma, x), ASSUMED_STD**2
        q = p * x.new_tensor(self.noise_ratios)
        extra = (p**2 - q**2).clamp(min=0).sqrt() * self._noise(x, sigma)
        follows = variance / (variance + p**2)
        due = (variance + p**2) / (variance * (p / q) ** 2 + p**2)
        return x + due * (self.denoiser(x + extra, sigma) - x - follows * extra)

    def _noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.keys is not None:
            return self.keys.draw(self.stream, next(self._calls), x)
        level = sigma.double().expand(len(x)).cpu().numpy().view(np.uint64)
        return NoiseKeys.of(level, np.zeros_like(level)).draw(self.stream, 1, x)
