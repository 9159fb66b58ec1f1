"""Policies by name: `load_policy("pusht-diffusion")`, `load_policy("loader:path")`.

A loader is an entry point of the group `gpc.policies`: a function from a path or name to a `gpc.policy.spec.Policy`.
The adapters in `policies/` are registered in the same way as those of other packages.
"""

from __future__ import annotations

from typing import Any, cast

from gpc.policy.sources import GROUP, bundled_folders, check_source, split_source
from gpc.policy.spec import Policy
from gpc.registry import load_entry


def load_policy(source: str) -> Policy:
    """Load a policy by bundled name, or as `loader:path`.

    Raises:
        InputError: If the loader or policy is unknown, a file is missing or damaged, or the adapter needs a package
            that is not installed.
    """
    check_source(source)
    loader, path = split_source(source)
    return cast("Policy", load_entry(GROUP, "policy loader", loader)(path))


def bundled_cards() -> dict[str, dict[str, Any]]:
    """Read `card.json` of every bundled policy, by name."""
    from gpc.card import CARD, read

    return {name: read(folder / CARD) for name, folder in bundled_folders().items()}
