"""Contracts of environments, policies and robots as checks, for the tests of an adapter."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpc.testing.env import check_env
    from gpc.testing.policy import check_policy
    from gpc.testing.robot import check_robot

__all__ = ["check_env", "check_policy", "check_robot"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gpc.testing' has no attribute {name!r}")
    return getattr(import_module(f"gpc.testing.{name.removeprefix('check_')}"), name)
