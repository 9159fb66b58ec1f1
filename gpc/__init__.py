"""Compose pretrained robot policies at test time.

`load_policy` and `compose` make policies; `evaluate`, `search` and `compare` roll them out with honest statistics.
Names are resolved on first use, so that a simulator process, which imports `gpc.rollout.env` only, never loads torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpc.commands.api import Result, evaluate, search
    from gpc.commands.comparison import Comparison, compare
    from gpc.commands.diagnosis import Diagnosis, diagnose
    from gpc.composition.average import AveragedChunks
    from gpc.composition.composed import ComposedPolicy, compose
    from gpc.composition.composers import Convex, Guidance
    from gpc.composition.steering import register_cost, steer
    from gpc.composition.superposition import And, Or
    from gpc.inference.best_of import BestOf
    from gpc.inference.device import Device
    from gpc.inference.methods import Langevin, Teleport
    from gpc.inference.settings import Sampling
    from gpc.policy.env_spec import EnvSpec
    from gpc.policy.load import load_policy
    from gpc.rollout.engine import Engine
    from gpc.rollout.executors import Local, Ray
    from gpc.score.denoiser import NetworkDenoiser
    from gpc.weights.searches import Grid, Racing

__version__ = "0.1.0"
_HOME = {
    "And": "gpc.composition.superposition",
    "AveragedChunks": "gpc.composition.average",
    "BestOf": "gpc.inference.best_of",
    "Comparison": "gpc.commands.comparison",
    "ComposedPolicy": "gpc.composition.composed",
    "Convex": "gpc.composition.composers",
    "Device": "gpc.inference.device",
    "Diagnosis": "gpc.commands.diagnosis",
    "Engine": "gpc.rollout.engine",
    "EnvSpec": "gpc.policy.env_spec",
    "Grid": "gpc.weights.searches",
    "Guidance": "gpc.composition.composers",
    "Langevin": "gpc.inference.methods",
    "Local": "gpc.rollout.executors",
    "NetworkDenoiser": "gpc.score.denoiser",
    "Or": "gpc.composition.superposition",
    "Racing": "gpc.weights.searches",
    "Ray": "gpc.rollout.executors",
    "Result": "gpc.commands.api",
    "Sampling": "gpc.inference.settings",
    "Teleport": "gpc.inference.methods",
    "compare": "gpc.commands.comparison",
    "compose": "gpc.composition.composed",
    "diagnose": "gpc.commands.diagnosis",
    "evaluate": "gpc.commands.api",
    "load_policy": "gpc.policy.load",
    "register_cost": "gpc.composition.steering",
    "search": "gpc.commands.api",
    "steer": "gpc.composition.steering",
}
__all__ = [
    "And",
    "AveragedChunks",
    "BestOf",
    "Comparison",
    "ComposedPolicy",
    "Convex",
    "Device",
    "Diagnosis",
    "Engine",
    "EnvSpec",
    "Grid",
    "Guidance",
    "Langevin",
    "Local",
    "NetworkDenoiser",
    "Or",
    "Racing",
    "Ray",
    "Result",
    "Sampling",
    "Teleport",
    "compare",
    "compose",
    "diagnose",
    "evaluate",
    "load_policy",
    "register_cost",
    "search",
    "steer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gpc' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
