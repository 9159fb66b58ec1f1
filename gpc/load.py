"""Policies by name: `load_policy("pusht-diffusion")`, `load_policy("loader:path")`.

A loader is an entry point of the group `gpc.policies`: a function from a path or name to a `gpc.policy.Policy`. The
adapters in `policies/` are registered in the same way as an outside package's.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from pathlib import Path
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
    return cast("Policy", load_entry(GROUP, "policy loader", loader)(path))


def load_entry(group: str, kind: str, name: str, others: Iterable[str] = ()) -> Any:
    """What a package registered under a name as an entry point of this group; `others` are names known besides.

    Raises InputError where the name is unknown or the package lacks another one.
    """
    found = _registered(group)
    if name not in found:
        raise InputError(f"unknown {kind} {name!r}{suggest(name, [*found, *others])}")
    try:
        return found[name].load()
    except ImportError as error:
        raise InputError(f"{kind} {name!r} needs a package that is missing ({error}); run gpc doctor") from None


@cache
def _registered(group: str) -> dict[str, EntryPoint]:
    """Looked up once: that reads the metadata of every installed package."""
    return {point.name: point for point in entry_points(group=group)}


def is_ours(group: str, name: str) -> bool:
    """Return whether the entry point of this name belongs to gpc itself, not to another package."""
    return name in _registered(group) and _registered(group)[name].value.startswith("gpc.")


def suggest(word: str, known: list[str]) -> str:
    """The end of an error line: the nearest known word, or all of them."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(sorted(known))}"


def bundled_cards() -> dict[str, dict[str, Any]]:
    """Read the card of every bundled policy, by name (`card.json` beside its weights)."""
    from gpc.card import CARD, read

    folders = Path(str(files("gpc.policies"))) / "bundled"
    return {path.parent.name: read(path) for path in sorted(folders.glob(f"*/{CARD}"))}
