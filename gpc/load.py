"""Policies by name: `load_policy("pusht-diffusion")`, `load_policy("loader:path")`.

A loader is an entry point of the group `gpc.policies`: a function from a path or name to a `gpc.policy.Policy`. The
adapters in `policies/` are registered in the same way as an outside package's.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from importlib.metadata import entry_points
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from gpc.errors import InputError

if TYPE_CHECKING:  # simulator processes look names up, too, and never load torch
    from gpc.policy import Policy

GROUP = "gpc.policies"


def load_policy(source: str) -> Policy:
    """Load a policy by bundled name, or as `loader:path`.

    Raises InputError where the loader or policy is unknown, a file is missing or damaged, or the adapter's outside
    package is not installed.
    """
    loader, colon, path = source.partition(":")
    if not colon:
        loader, path = "bundled", source
    found = {point.name: point for point in entry_points(group=GROUP)}
    if loader not in found:
        raise InputError(f"unknown policy loader {loader!r} in {source!r}{suggest(loader, list(found))}")
    try:
        load = found[loader].load()
    except ImportError as error:
        raise InputError(f"loader {loader!r} needs a package that is missing ({error}); run gpc doctor") from None
    return cast("Policy", load(path))


def suggest(word: str, known: list[str]) -> str:
    """The end of an error line: the nearest known word, or all of them."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(sorted(known))}"


def bundled_cards() -> dict[str, dict[str, Any]]:
    """The card of every bundled policy, by name (`card.json` beside its weights)."""
    folders = files("gpc.policies").joinpath("bundled").iterdir()
    cards = {folder.name: folder.joinpath("card.json") for folder in folders}
    return {name: json.loads(path.read_text()) for name, path in sorted(cards.items()) if path.is_file()}
