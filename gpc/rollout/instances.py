"""Environments that exist already: simulator processes make others like them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import gymnasium

from gpc.errors import InputError, one_line
from gpc.objects import described, settings_of

EVERYWHERE = ("gymnasium", "gymnasium_robotics")
"""Packages whose ids every process has (`gpc.envs.from_gymnasium`)."""


@dataclass(frozen=True, eq=False)
class Instance:
    """An environment that exists, as a function that makes another one like it.

    Attributes:
        name: its id, or the name of its class.
        settings: what distinguishes it from others, as plain data.
        content: gymnasium's spec, or the environment itself.
    """

    name: str
    settings: dict[str, Any]
    content: Any = field(repr=False)

    def __call__(self, max_steps: int | None = None) -> gymnasium.Env[Any, Any]:
        """Make the environment.

        Raises:
            InputError: If one that exists cannot be copied.
        """
        if isinstance(self.content, gymnasium.Env):
            try:
                return deepcopy(self.content)
            except Exception as error:
                raise InputError(
                    f"{self.name} cannot be copied ({one_line(error)}); give a function that makes all of it, as in "
                    "gpc.evaluate(policy, make_env)"
                ) from None
        return gymnasium.make(self.content, max_episode_steps=max_steps)


def instance(env: gymnasium.Env[Any, Any]) -> Instance:
    """Return what makes an environment like this one.

    An environment of `gymnasium.make` is made again from its id, arguments and wrappers; any other is copied, and so is
    one with a wrapper that does not record its arguments.
    """
    spec, kind = env.spec, type(env.unwrapped)
    if spec is not None and _made_again(spec):
        return _again(spec)
    values = {key: getattr(env.unwrapped, key, ...) for key in settings_of(kind)}
    plain = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
    return Instance(kind.__name__, plain, env)


def registered_here(name: str) -> Instance | None:
    """Return what makes the environment of an id that this process has registered.

    None if there is none, or every process has it.
    """
    spec = gymnasium.registry.get(name)
    return None if spec is None or package_of(spec) in EVERYWHERE else _again(spec)


def package_of(spec: Any) -> str:
    """Return the package or module of the class or function behind an id."""
    entry = spec.entry_point
    module: str = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return module.partition(":")[0].partition(".")[0]


def _again(spec: Any) -> Instance:
    wrappers = [[wrapper.entry_point, described(wrapper.kwargs)] for wrapper in spec.additional_wrappers]
    arguments = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    return Instance(spec.id, {"settings": described(arguments), "wrappers": wrappers}, spec)


def _made_again(spec: Any) -> bool:
    try:
        gymnasium.make(spec).close()
    except (ValueError, TypeError, gymnasium.error.Error):
        return False
    return True
