"""Recorded configurations of earlier versions in today's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, signature
from pkgutil import resolve_name
from typing import Any

from gpc.commands.config import COMPARED

REMOVED: dict[str, dict[str, Any]] = {"gpc.inference.settings.Sampling": {"rho": 7.0, "warm": None, "reuse": {}}}
"""Settings of earlier versions by target, and the value that is what gpc does now."""


def completed(node: Any) -> Any:
    """Add the defaults of each `_target_` to a recorded configuration, so that what means the same is equal.

    A run of an earlier version had the settings that came later at their defaults; a setting that was removed since is
    dropped if its value was what gpc does now.
    """
    if isinstance(node, list):
        return [completed(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    target = node.get("_target_")
    gone = REMOVED.get(target, {}) if isinstance(target, str) else {}
    own = {key: completed(value) for key, value in node.items() if key not in gone or value != gone[key]}
    return _defaults(target) | own if isinstance(target, str) and target in COMPARED else own


def _defaults(target: str) -> dict[str, Any]:
    called = resolve_name(target)
    if is_dataclass(called):
        found = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(called)}
    else:
        found = {parameter.name: parameter.default for parameter in signature(called).parameters.values()}
    given = {name: value for name, value in found.items() if value not in (MISSING, Parameter.empty)}
    return dict(json.loads(json.dumps(given)))
