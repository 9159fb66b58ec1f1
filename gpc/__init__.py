"""Compose pretrained robot policies at test time.

`load_policy` and `compose` make policies; `evaluate`, `search` and `compare` roll them out with honest statistics. Names are
resolved on first use, so that a simulator process, which imports `gpc.env` only, never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpc.api import Result, evaluate, search
    from gpc.comparison import Comparison, compare
    from gpc.composers import Average, Convex, Guidance, PerDimension, Scheduled
    from gpc.composition import ComposedPolicy, average, both, compose, either, guide, schedule, split
    from gpc.denoise import NetworkDenoiser
    from gpc.load import load_policy
    from gpc.steering import register_cost, steer
    from gpc.superposition import And, Or

__version__ = "0.1.0"
_HOME = {
    "And": "gpc.superposition",
    "Average": "gpc.composers",
    "Comparison": "gpc.comparison",
    "ComposedPolicy": "gpc.composition",
    "Convex": "gpc.composers",
    "Guidance": "gpc.composers",
    "NetworkDenoiser": "gpc.denoise",
    "Or": "gpc.superposition",
    "PerDimension": "gpc.composers",
    "Result": "gpc.api",
    "Scheduled": "gpc.composers",
    "average": "gpc.composition",
    "both": "gpc.composition",
    "compare": "gpc.comparison",
    "compose": "gpc.composition",
    "either": "gpc.composition",
    "evaluate": "gpc.api",
    "guide": "gpc.composition",
    "load_policy": "gpc.load",
    "register_cost": "gpc.steering",
    "schedule": "gpc.composition",
    "search": "gpc.api",
    "split": "gpc.composition",
    "steer": "gpc.steering",
}
__all__ = [
    "And",
    "Average",
    "Comparison",
    "ComposedPolicy",
    "Convex",
    "Guidance",
    "NetworkDenoiser",
    "Or",
    "PerDimension",
    "Result",
    "Scheduled",
    "average",
    "both",
    "compare",
    "compose",
    "either",
    "evaluate",
    "guide",
    "load_policy",
    "register_cost",
    "schedule",
    "search",
    "split",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gpc' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
