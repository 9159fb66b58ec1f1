"""Inpainting: the part of a chunk that is decided before the chunk is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gpc.composition.align import AlignedMember
from gpc.types import Array


@dataclass(frozen=True)
class InpaintTarget:
    """Actions to which a new chunk is drawn, see `gpc.score.denoiser.Inpainted`.

    Attributes:
        actions: (batch, horizon, action), in the environment's units.
        mask: Weight of the target from 0 to 1, (horizon,) or (batch, horizon).
    """

    actions: Array
    mask: Array

    def for_member(self, member: AlignedMember) -> InpaintTarget:
        """Return the target on a member's steps and dimensions."""
        return InpaintTarget(member.slice(torch.from_numpy(self.actions)).numpy(), self.mask[..., member.steps])

    def tile(self, count: int) -> InpaintTarget:
        """Repeat the batch `count` times."""
        mask = np.broadcast_to(self.mask, self.actions.shape[:2])
        return InpaintTarget(np.tile(self.actions, (count, 1, 1)), np.tile(mask, (count, 1)))
