"""A checkpoint's configuration as data: references are followed, code is never run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from gpc.errors import InputError, reading
from gpc.policies.checkpoint import Inert

REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")
NODES = 20_000  # of one configuration; the target of a reference is counted at each use
YAML_SIZE, YAML_EVENTS, YAML_DEPTH = 2**18, 20_000, 50  # bytes; values; levels


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain containers.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If the file cannot be read, is too large or too deep, or uses aliases, which may expand to many
        values.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    with reading(path):
        with path.open("rb") as file:
            text = file.read(YAML_SIZE + 1).decode()
        if len(text) > YAML_SIZE:
            raise ValueError(f"it has more than {YAML_SIZE} bytes")
        depth = 0
        for count, event in enumerate(yaml.parse(text, yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it uses aliases; write the values out")
            if count > YAML_EVENTS or depth > YAML_DEPTH:
                raise ValueError(f"it has more than {YAML_EVENTS} values or {YAML_DEPTH} levels")
        return OmegaConf.to_container(OmegaConf.create(text))


@dataclass
class Settings:
    """Settings by dotted key ("policy.horizon").

    References to other keys are followed, resolvers (code) are refused.
    """

    path: Path
    root: Any
    visited: int = field(default=0, init=False)  # nodes, in all calls

    def get(self, key: str) -> Any:
        """Return the value of a key.

        Raises:
            InputError: If there is none.
        """
        value = self.find(key, None)
        if value is None:
            raise InputError(f"{self.path}: its configuration has no {key!r}")
        return value

    def find(self, key: str, absent: Any) -> Any:
        """Return the value of a key, None for null, or `absent` if the key is missing.

        Raises:
            InputError: If the value is code or no plain data, or refers to itself.
        """
        try:
            node = self._open(self.root)
            for part in key.split("."):
                if not isinstance(node, dict) or part not in node:
                    return absent
                node = self._open(node[part])
            return self._plain(node)
        except RecursionError:
            raise InputError(f"{self.path}: {key[:80]!r} in its configuration refers to itself") from None

    def _open(self, node: Any) -> Any:
        """Return the content of a stand-in or reference, or the node itself."""
        self.visited += 1
        if self.visited > NODES:
            raise InputError(f"{self.path}: its configuration has parts that are shared without end")
        if isinstance(node, Inert):
            state = node.state if isinstance(node.state, dict) else {}
            return self._open(state.get("_content", state.get("_val")))
        reference = REFERENCE.fullmatch(node) if isinstance(node, str) else None
        return self.find(reference[1], None) if reference else node

    def _plain(self, node: Any) -> Any:
        node = self._open(node)
        if isinstance(node, dict):
            return {str(key): self._plain(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [self._plain(value) for value in node]
        if not isinstance(node, str | int | float | None):
            raise InputError(f"{self.path}: its configuration holds a {type(node).__name__}, which is no setting")
        if isinstance(node, str) and "${" in node:
            raise InputError(f"{self.path}: its configuration has {node[:80]!r}, which is code; gpc runs none of it")
        return node
