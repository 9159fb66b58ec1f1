"""Stitching: how chunks, each planned from an older observation, become one stream of actions.

Steps are counted in actions that were really executed. A plan says which of them its first action belongs to, so a chunk that
arrives late is entered where the robot is: what was consumed since its observation is skipped, not an estimate of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpc.errors import InputError
from gpc.types import Array


@dataclass(frozen=True)
class PlacedChunk:
    """A chunk in its place: `actions` (horizon, dim), the first for the absolute step `first` and the time `begins`."""

    first: int
    actions: Array
    begins: float = 0.0

    def at(self, step: int) -> Array | None:
        """The action (dim,) for an absolute step, None outside the chunk."""
        return self.actions[step - self.first] if 0 <= step - self.first < len(self.actions) else None


class ChunkBlender(Protocol):
    """How chunks become actions; it has no memory, the plans are handed in."""

    @property
    def request_every(self) -> int:
        """How many steps after a request the next is due."""

    @property
    def max_chunks(self) -> int:
        """How many of the newest plans are of use."""

    def blend(self, plans: Sequence[PlacedChunk], step: int) -> Array | None:
        """The action (dim,) for a step from the plans, the oldest first; None where they have none."""

    def inpaint_weights(self, horizon: int, left: int, delay: int) -> Array | None:
        """How far (horizon,), 0 to 1, a chunk asked for now is drawn to the `left` steps that are planned from now on.

        `delay` is in how many steps it is expected. None: it is sampled freely.
        """


@dataclass(frozen=True)
class RecedingHorizon:
    """The newest chunk only; after `n_action_steps` the next is asked for, and the rest of the old one fills the wait."""

    n_action_steps: int

    def __post_init__(self) -> None:
        _positive("n_action_steps", self.n_action_steps)

    @property
    def request_every(self) -> int:
        """See `Stitch`."""
        return self.n_action_steps

    @property
    def max_chunks(self) -> int:
        """See `Stitch`."""
        return 1

    def blend(self, plans: Sequence[PlacedChunk], step: int) -> Array | None:
        """See `Stitch`."""
        return plans[-1].at(step) if plans else None

    def inpaint_weights(self, horizon: int, left: int, delay: int) -> Array | None:
        """See `Stitch`."""
        return None


@dataclass(frozen=True)
class RealTimeChunking(RecedingHorizon):
    """Receding horizon whose chunks go on from the old one: real-time chunking (Black et al. 2025, arXiv 2506.07339).

    The steps that will have been executed when the chunk arrives are fixed, the later ones of the old chunk pull with the
    weights of its equation 5: with c_i = (left - i) / (left - delay + 1), c_i (e^{c_i} - 1) / (e - 1). They enter by
    inpainting (`gpc.score.denoiser.Decided`), not by guidance.
    """

    def inpaint_weights(self, horizon: int, left: int, delay: int) -> Array | None:
        """See `Stitch`."""
        i = np.arange(horizon)
        c = np.clip((left - i) / max(left - delay + 1, 1), 0, 1)
        return np.where(i < min(delay, left), 1.0, np.where(i < left, c * np.expm1(c) / np.expm1(1), 0.0))


@dataclass(frozen=True)
class TemporalEnsembling:
    """The mean of all chunks for a step, the oldest first with weights exp(-decay i) (Zhao et al. 2023, arXiv 2304.13705).

    A chunk is asked for every `every` steps, or as often as one is ready. Means of several modes may lie in none of them.
    """

    request_every: int
    decay: float
    max_chunks: int

    def __post_init__(self) -> None:
        _positive("every", self.request_every)
        _positive("kept", self.max_chunks)
        if not np.isfinite(self.decay):
            raise InputError(f"stitch.decay={self.decay} must be a number")

    def blend(self, plans: Sequence[PlacedChunk], step: int) -> Array | None:
        """See `Stitch`."""
        said = [action for plan in plans if (action := plan.at(step)) is not None]
        if not said:
            return None
        weights = np.exp(-self.decay * np.arange(len(said)))
        return np.asarray(weights @ np.stack(said) / weights.sum())

    def inpaint_weights(self, horizon: int, left: int, delay: int) -> Array | None:
        """See `Stitch`."""
        return None


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"stitch.{name}={value} must be at least 1")
