"""EnvSpec: how to build an environment, and how policies see it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpc.errors import InputError

LIMITS = {"n_action_steps": (0, 10**4), "max_steps": (0, 10**6), "n_obs_steps": (1, 1024)}


@dataclass(frozen=True)
class EnvSpec:
    """How to build an environment in a worker, and how policies see it.

    `target` is "module:class", called with `observation_keys` (not if None: all that it has), `max_steps` and
    `options`; a chunk's first `n_action_steps` actions are executed before the policy looks again at the last
    `n_obs_steps` observations, or fewer of those keys that `history` names.
    """

    target: str
    n_action_steps: int
    max_steps: int
    observation_keys: tuple[str, ...] | None = None
    n_obs_steps: int = 1
    options: Mapping[str, Any] | None = None
    history: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                raise InputError(f"env.{name}={value}: give a whole number from {least} to {most}")

    @property
    def name(self) -> str:
        """What reports call it: the task, of a class that has several."""
        return str((self.options or {}).get("task", self.target.partition(":")[2]))
