"""EnvSpec: how to build an environment; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpc.errors import InputError

LIMITS = {"n_action_steps": 10**4, "max_steps": 10**6}


@dataclass(frozen=True)
class EnvSpec:
    """How to build an environment, and how many actions are executed at once.

    Attributes:
        type: registered name (entry points `gpc.envs`), "module:name" of a class or function of the user's, or the
            object itself; in `gpc.evaluate`, `search` and `compare` also any other name of `env=` and an environment. It
            makes a `gymnasium.Env`, and is called with `options` and, if it takes them, with `max_steps`, `render_mode` and
            the `observation_keys` that the policies read.
        n_action_steps: actions of a chunk that are executed before the policy observes again; None: as the policies'
            checkpoints have it.
        max_steps: longest episode, in control steps; None: as the environment is registered, or as the checkpoints have
            it (type "policy").
        options: further arguments of the environment.
        rename_map: the environment's name of an observation, by a name that policies may use instead.
    """

    type: str | Callable[..., Any]
    n_action_steps: int | None = None
    max_steps: int | None = None
    options: Mapping[str, Any] | None = None
    rename_map: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        for name, most in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and 1 <= value <= most):
                raise InputError(f"env.{name}={value}: give a whole number from 1 to {most}")

    def over(self, other: EnvSpec) -> EnvSpec:
        """Return another environment with the settings that this one has."""
        return replace(
            other,
            n_action_steps=self.n_action_steps,
            max_steps=self.max_steps or other.max_steps,
            options={**(other.options or {}), **(self.options or {})} or None,
            rename_map={**(other.rename_map or {}), **(self.rename_map or {})},
        )

    @property
    def name(self) -> str:
        """The name in reports: the task, of a class that has several."""
        task = (self.options or {}).get("task", self.type)
        name: str = task if isinstance(task, str) else getattr(task, "__name__", "") or getattr(task, "name", "")
        return name or type(task).__name__
