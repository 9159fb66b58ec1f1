"""A policy for clients in other processes.

`RemotePolicy` is the client of `gpc serve`. It needs numpy, msgpack and websockets, and no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpc.serve.client import RemotePolicy

__all__ = ["RemotePolicy"]


def __getattr__(name: str) -> Any:
    if name != "RemotePolicy":
        raise AttributeError(f"module 'gpc.serve' has no attribute {name!r}")
    from gpc.serve.client import RemotePolicy

    return RemotePolicy
