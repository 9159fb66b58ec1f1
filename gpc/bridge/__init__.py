"""From a policy to a robot: the policy server, its client, and the control loop.

`RemotePolicy` is the robot's side of `gpc serve`. It needs numpy, msgpack and websockets; nothing here loads torch unasked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpc.bridge.client import RemotePolicy

__all__ = ["RemotePolicy"]


def __getattr__(name: str) -> Any:
    if name != "RemotePolicy":
        raise AttributeError(f"module 'gpc.bridge' has no attribute {name!r}")
    from gpc.bridge.client import RemotePolicy

    return RemotePolicy
