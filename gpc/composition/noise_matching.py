"""Raising: a network that was trained with one noise level, for actions whose dimensions hold different ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gpc.score.denoiser import Denoiser, columns
from gpc.score.keyed_noise import noise_for

ASSUMED_STD = 0.005  # taken for the spread of normalised actions; less than most have (docs/design.md, section 1)


@dataclass
class NoiseMatched:
    """The denoiser of x = x0 + noise of level q = shares sigma, from one that knows a single level: it is told sigma, the most.

    It sees x + extra, of noise p = sigma in all dimensions. For N(m, s^2) it would move x by p^2 / (s^2 + p^2) of the way to m,
    where q^2 / (s^2 + q^2) is due, and follow `extra` by s^2 / (s^2 + p^2). Both are corrected as if s were
    `ASSUMED_STD`. That is exact for this s, and for every density in the limits: far above s, where the whole way is due, and
    far below, where a way is
    the noise squared times the score.
    """

    denoiser: Denoiser
    shares: tuple[float, ...]  # of each dimension's noise in the largest one's
    rows: Sequence[bytes] | None = None  # what says one chunk of the batch from another; else what it holds does
    calls: int = field(default=0, init=False)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """See `Denoiser`."""
        p, variance = columns(sigma, x), ASSUMED_STD**2
        q = p * x.new_tensor(self.shares)
        extra = (p**2 - q**2).clamp(min=0).sqrt() * self._noise(x, sigma)
        follows = variance / (variance + p**2)
        due = (variance + p**2) / (variance * (p / q) ** 2 + p**2)
        return x + due * (self.denoiser(x + extra, sigma) - x - follows * extra)

    def _noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        # New at every call, the same when a run is repeated or another candidate's weights meet the same chunk, and nothing
        # else in the batch has a part in it. Who calls without saying which chunk it is has the noise of what it asks about.
        if self.rows is not None:
            self.calls += 1
            return noise_for([row + self.calls.to_bytes(8) for row in self.rows], x)
        levels = sigma.expand(len(x)).cpu().numpy()
        return noise_for(
            [row.tobytes() + level.tobytes() for row, level in zip(x.cpu().numpy(), levels, strict=True)], x
        )
