"""Manifests of earlier versions in today's words: which type an import path meant, and which settings are gone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpc.inference.settings import Sampling
from gpc.objects import REQUIRED, described, settings_of
from gpc.registry import COMPOSERS, SEARCHES, is_ours, load_entry

TYPES: Mapping[str, str | None] = {
    "gpc.worker.EnvSpec": None,
    "gpc.rollout.Engine": None,
    "gpc.control.Sampling": None,
    "gpc.robots.from_lerobot.make_robot": None,
    "gpc.bridge.pilot.Patience": None,
    "gpc.bridge.safety.limits_from": None,
    "gpc.bridge.stitch.RealTimeChunking": "real_time",
    "gpc.bridge.stitch.RecedingHorizon": "receding_horizon",
    "gpc.bridge.stitch.TemporalEnsembling": "ensembling",
    "gpc.cluster.Local": "local",
    "gpc.cluster.Ray": "ray",
    "gpc.composition.average": "average",
    "gpc.composition.both": "and",
    "gpc.composition.compose": "convex",
    "gpc.composition.either": "or",
    "gpc.composition.guide": "guidance",
    "gpc.composition.schedule": "scheduled",
    "gpc.composition.split": "per_dimension",
    "gpc.weight_search.Demos": "demos",
    "gpc.weight_search.Grid": "grid",
    "gpc.weight_search.Racing": "racing",
    "gpc.weight_search.Random": "random",
    "gpc.bayesian_search.Bayesian": None,  # its setting "sampler" is the type
}
"""Today's type by the import path that earlier versions recorded; None if the part has one class only."""

ENVIRONMENTS = {
    "gpc.envs.pusht:PushT": "pusht",
    "gpc.envs.from_robosuite:Robosuite": "robosuite",
    "gpc.envs.from_gymnasium:Gymnasium": "gymnasium",
}
"""Today's type by the recorded target of an environment."""

FLAT: Mapping[str, Any] = {
    "corrections": 0, "rate": 0.1, "candidates": 1, "critic": None, "teleport": None, "spread": 0.5,
}  # fmt: skip
"""Settings of earlier samplers that are part of an object today, with their defaults."""

CPU: Mapping[str, Any] = {"device": "cpu", "dtype": None, "tf32": False}
"""Where earlier versions computed."""

REMOVED: Mapping[str, Mapping[str, Any]] = {
    "sampler": {"rho": 7.0, "warm": None, "reuse": {}},
    "env": {"observation_keys": None, "n_obs_steps": 1, "history": None},
    "search": {"demonstrations": ...},
}
"""Settings that are gone, by part: dropped if their value is this one, which is today's behaviour (...: any value)."""


def upgraded(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest in today's words, completed with defaults.

    A run of an earlier version had the settings that came later at their defaults. A setting that was removed since is
    dropped if its value was today's behaviour; any other stays, as a difference to every configuration of today.
    """
    config, resolved = manifest.get("config"), manifest.get("resolved")
    if isinstance(config, Mapping) and isinstance(resolved, Mapping):
        env, built = config.get("env"), resolved.get("env")
        if isinstance(env, Mapping) and env.get("target") == "policy" and isinstance(built, Mapping):
            config = {**config, "env": built}
    return {**manifest, "config": upgraded_config(config), "resolved": upgraded_config(resolved)}


def upgraded_config(config: Any) -> Any:
    """Return a recorded configuration in today's words, see `upgraded`."""
    if not isinstance(config, Mapping):
        return config
    # an evaluation resumes with more episodes; earlier versions recorded their number
    parts = {key: _part(key, value) for key, value in config.items() if key != "episodes"}
    sides = parts.get("sides")
    if isinstance(sides, list):
        parts["sides"] = [upgraded_config(side) for side in sides]
    elif "policies" in parts:
        parts = {**CPU, **parts}
    if "weights" in parts and parts["weights"] is None:  # of a policy alone
        parts["weights"] = [1.0]
    return parts


def _part(key: str, node: Any) -> Any:
    """Return one part of a configuration, "sampler" for example, in today's words."""
    if not isinstance(node, Mapping):
        return node
    path, gone = node.get("_target_"), REMOVED.get(key, {}) if "_target_" in node else {}
    if isinstance(path, str) and path in TYPES:
        node = _without_path(node, path)
    if key == "sampler":
        node = upgraded_sampler(node)
    node = {name: value for name, value in node.items() if name not in gone or gone[name] not in (value, ...)}
    return _defaults(key, node) | node


def upgraded_sampler(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sampler with its method and its choice among chunks as objects."""
    rest = {key: value for key, value in node.items() if key not in FLAT}
    old = {**FLAT, **node}
    if rest.get("method") == "langevin":
        rest["method"] = {"type": "langevin", "corrections": old["corrections"], "rate": old["rate"]}
    if old["teleport"] is not None:
        inner = rest.get("method", "dpmpp_2m")
        rest["method"] = {"type": "teleport", "sigma": old["teleport"], "spread": old["spread"], "method": inner}
    if old["candidates"] != 1:
        rest["best_of"] = {"n": old["candidates"], "cost": old["critic"]}
    return rest


def _without_path(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    rest = {key: value for key, value in node.items() if key != "_target_"}
    name = rest.pop("sampler", None) if path == "gpc.bayesian_search.Bayesian" else TYPES[path]
    if "target" in rest:
        target = rest.pop("target")
        name = ENVIRONMENTS.get(target, target) if isinstance(target, str) else target
        rest["options"] = rest.get("options") or {}
    return rest if name is None else {"type": name, **rest}


def _defaults(key: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a part's class; a class of others is not loaded."""
    group, name = {"composer": COMPOSERS, "search": SEARCHES}.get(key), node.get("type")
    if key == "sampler":
        settings = settings_of(Sampling)
    elif group is not None and isinstance(name, str) and is_ours(group, name):
        settings = settings_of(load_entry(group, key, name))
    else:
        return {}
    skipped = ("policies", "weights")
    return {
        name: described(setting.default)
        for name, setting in settings.items()
        if setting.default is not REQUIRED and name not in skipped
    }
