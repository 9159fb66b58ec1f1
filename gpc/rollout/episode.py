"""Episodes: jobs, what is recorded of them while they run, and what they end in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from gpc.types import Array, Frame


class Job(NamedTuple):
    """An episode to run: candidate, weights, seed of initial state and noise."""

    candidate: int
    weights: tuple[float, ...]
    seed: int


@dataclass(frozen=True)
class Episode:
    """A finished episode.

    Attributes:
        job: candidate, weights and seed.
        success: whether the task was solved at any step.
        score: largest reward.
        steps: number of executed actions.
        trajectory: "action" (steps, action), "reward" (steps,), and each observation of numbers at every decision,
        (chunks, dim).
        reported: whether the environment reports success at all.
    """

    job: Job
    success: bool
    score: float
    steps: int
    trajectory: dict[str, Array]
    reported: bool = True


@dataclass
class Running:
    """The unfinished episode of one lane."""

    job: Job
    success: bool | None = None
    rewards: list[float] = field(default_factory=list)
    actions: list[Array] = field(default_factory=list)
    observations: list[Frame] = field(default_factory=list)

    def finish(self) -> Episode:
        """Return the finished episode."""
        steps = len(self.rewards)
        trajectory = {key: np.stack([o[key][-1] for o in self.observations]) for key in self.observations[0]}
        trajectory["action"] = np.concatenate(self.actions)[:steps].astype(np.float32)
        trajectory["reward"] = np.array(self.rewards, np.float32)
        reported = self.success is not None
        return Episode(self.job, bool(self.success), max(self.rewards), steps, trajectory, reported)
