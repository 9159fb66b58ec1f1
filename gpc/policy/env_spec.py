"""EnvSpec: how to build an environment, and how policies see it; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta


@dataclass(frozen=True)
class EnvSpec:
    """How to build an environment in a worker, and how policies see it.

    `target` is "module:class", called with `observation_keys` (not if None: all that it has), `max_steps` and `options`;
    a chunk's first `n_action_steps` actions are executed before the policy looks again at the last `n_obs_steps`
    observations, or fewer of those keys that `history` names.
    """

    target: str
    n_action_steps: Annotated[int, Meta(ge=0, le=10**4)]
    max_steps: Annotated[int, Meta(ge=0, le=10**6)]
    observation_keys: tuple[str, ...] | None = None
    n_obs_steps: Annotated[int, Meta(ge=1, le=1024)] = 1
    options: Mapping[str, Any] | None = None
    history: Mapping[str, int] | None = None

    @property
    def name(self) -> str:
        """What reports call it: the task, of a class that has several."""
        return str((self.options or {}).get("task", self.target.partition(":")[2]))
