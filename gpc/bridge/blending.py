"""How chunks, each sampled for an older observation, become one stream of actions.

Steps are counted in actions that were executed. A placed chunk has the number of its first step, so a chunk that arrives
late is entered at the step where the robot is: the steps that were executed since its observation are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpc.errors import InputError
from gpc.schema import Count, check_fields
from gpc.types import Array


@dataclass(frozen=True)
class PlacedChunk:
    """A chunk with its place in the stream.

    Attributes:
        first: absolute step of the first action.
        actions: (horizon, dim).
        time: time for which the first action is meant, in seconds.
    """

    first: int
    actions: Array
    time: float = 0.0

    def at(self, step: int) -> Array | None:
        """Return the action (dim,) for an absolute step, None outside the chunk."""
        return self.actions[step - self.first] if 0 <= step - self.first < len(self.actions) else None


class ChunkBlender(Protocol):
    """How chunks become actions; it has no memory: chunks are passed to it."""

    @property
    def request_every(self) -> int:
        """Number of steps after a request at which the next one is due."""

    @property
    def max_chunks(self) -> int:
        """Number of the newest chunks that `blend` uses."""

    def blend(self, chunks: Sequence[PlacedChunk], step: int) -> Array | None:
        """Return the action (dim,) for a step, None if no chunk has one.

        Args:
            chunks: chunks from the oldest to the newest.
            step: absolute step.
        """

    def inpaint_weights(self, horizon: int, planned: int, delay: int) -> Array | None:
        """Return the weights, (horizon,) from 0 to 1, that draw a new chunk to old ones.

        Args:
            horizon: steps of the new chunk from now on.
            planned: steps from now on that the old chunks have.
            delay: steps after which the new chunk is expected.

        Returns:
            None if the new chunk is sampled freely.
        """


@dataclass(frozen=True)
class RecedingHorizon:
    """Execute the newest chunk only.

    Attributes:
        n_action_steps: steps after which the next chunk is requested; until it arrives the old one is continued.
    """

    n_action_steps: Count = 8

    def __post_init__(self) -> None:
        check_fields(self, "stitch.")

    @property
    def request_every(self) -> int:
        """Number of steps between two requests."""
        return self.n_action_steps

    @property
    def max_chunks(self) -> int:
        """One: the newest chunk."""
        return 1

    def blend(self, chunks: Sequence[PlacedChunk], step: int) -> Array | None:
        """Return the newest chunk's action for a step."""
        return chunks[-1].at(step) if chunks else None

    def inpaint_weights(self, horizon: int, planned: int, delay: int) -> Array | None:
        """Return None: chunks are sampled freely."""
        return None


@dataclass(frozen=True)
class RealTimeChunking(RecedingHorizon):
    """Continue the old chunk in the new one: real-time chunking.

    Source: Black et al. 2025, arXiv 2506.07339.
    The steps that are executed before the new chunk arrives are fixed. The later steps of the old chunk have the weights
    of equation 5 there: with c_i = (planned - i) / (planned - delay + 1), c_i (e^{c_i} - 1) / (e - 1). They enter by
    inpainting in the sampler, not by guidance through the network as in the paper.
    """

    def inpaint_weights(self, horizon: int, planned: int, delay: int) -> Array | None:
        """Return 1 for steps before `delay`, then weights that fall to 0 at `planned`."""
        i = np.arange(horizon)
        c = np.clip((planned - i) / max(planned - delay + 1, 1), 0, 1)
        soft = np.where(i < planned, c * np.expm1(c) / np.expm1(1), 0.0)
        return np.where(i < min(delay, planned), 1.0, soft)


@dataclass(frozen=True)
class TemporalEnsembling:
    """Average all chunks for a step: temporal ensembling.

    Source: Zhao et al. 2023, arXiv 2304.13705. A mean of two modes may lie in neither.

    Attributes:
        request_every: steps after which the next chunk is requested, or later if none is ready.
        decay: the i-th oldest chunk has the weight exp(-decay i).
        max_chunks: number of the newest chunks that are averaged.
    """

    request_every: Count = 1
    decay: float = 0.01
    max_chunks: Count = 16

    def __post_init__(self) -> None:
        check_fields(self, "stitch.")
        if not np.isfinite(self.decay):
            raise InputError(f"stitch.decay={self.decay} must be a finite number")

    def blend(self, chunks: Sequence[PlacedChunk], step: int) -> Array | None:
        """Return the weighted mean of the chunks' actions for a step."""
        actions = [action for chunk in chunks if (action := chunk.at(step)) is not None]
        if not actions:
            return None
        weights = np.exp(-self.decay * np.arange(len(actions)))
        return np.asarray(weights @ np.stack(actions) / weights.sum())

    def inpaint_weights(self, horizon: int, planned: int, delay: int) -> Array | None:
        """Return None: chunks are sampled freely."""
        return None
