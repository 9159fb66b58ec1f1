"""A checkpoint's configuration, read as data: references are followed, nothing that it names is imported, called or evaluated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpc.errors import InputError
from gpc.policies.checkpoint import Inert

REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


@dataclass(frozen=True)
class Settings:
    """Settings by dotted key ("policy.horizon"); references to other keys are followed, resolvers (code) are refused."""

    path: Path
    root: Any

    def get(self, key: str) -> Any:
        """What a key says; InputError where it says nothing."""
        value = self.find(key, None)
        if value is None:
            raise InputError(f"{self.path}: its configuration has no {key!r}")
        return value

    def find(self, key: str, absent: Any) -> Any:
        """What a key says, None for null, or `absent` where it is not there; InputError where that is code or endless."""
        try:
            node = self._open(self.root)
            for part in key.split("."):
                if not isinstance(node, dict) or part not in node:
                    return absent
                node = self._open(node[part])
            return self._plain(node)
        except RecursionError:
            raise InputError(f"{self.path}: {key!r} in its configuration refers to itself") from None

    def _open(self, node: Any) -> Any:
        """What a stand-in or a reference holds."""
        if isinstance(node, Inert):
            state = node.state if isinstance(node.state, dict) else {}
            return self._open(state.get("_content", state.get("_val")))
        reference = REFERENCE.fullmatch(node) if isinstance(node, str) else None
        return self.find(reference[1], None) if reference else node

    def _plain(self, node: Any) -> Any:
        node = self._open(node)
        if isinstance(node, dict):
            return {str(key): self._plain(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self._plain(value) for value in node]
        if isinstance(node, str) and "${" in node:
            raise InputError(f"{self.path}: its configuration says {node[:80]!r}, which is code; gpc runs none of it")
        return node
