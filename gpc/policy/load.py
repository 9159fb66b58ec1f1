"""Policies by name: `load_policy("pusht-diffusion")`, `load_policy("loader:path")`, `load_policy("module:name:argument")`.

A loader is an entry point of the group `gpc.policies`: a function from a path or name to a `gpc.policy.spec.Policy`.
The adapters in `policies/` are registered in the same way as those of other packages.
"""

from __future__ import annotations

from typing import Any, cast

from gpc.errors import GpcError, InputError
from gpc.policy.sources import GROUP, bundled_folders, check_source, split_source
from gpc.policy.spec import Policy
from gpc.registry import cause, is_module, load_entry, load_named, names

PROTOCOL = ("name", "actions", "observations", "levels", "fingerprint", "condition")  # of a policy


def load_policy(source: str) -> Policy:
    """Load a policy that the user names.

    Args:
        source: bundled name, `loader:path`, or an object of the user's own: `module:name`, a policy or a function without
            arguments that returns one, or `module:name:argument`, a function of a text. The module is imported, from the
            working directory or the installed packages. A loader wins over a module of its name.

    Raises:
        InputError: If the loader, module or policy is unknown, a file is missing or damaged, or the adapter needs a package
            that is not installed.
    """
    loader, _ = split_source(source)
    return _load_own(source) if loader not in names(GROUP) and is_module(loader) else load_registered(source)


def as_policy(policy: Policy | str) -> Policy:
    """Return a policy; a text is the source of one.

    Raises:
        InputError: As `load_policy`, or if it is a list.
    """
    if isinstance(policy, list | tuple):
        raise InputError(f"{len(policy)} policies where one is expected; gpc.compose makes one of several")
    return load_policy(policy) if isinstance(policy, str) else policy


def load_registered(source: str) -> Policy:
    """Load a policy that a file may name: by bundled name, or as `loader:path`.

    No module is imported by its name.

    Raises:
        InputError: As `load_policy`.
    """
    check_source(source)
    loader, path = split_source(source)
    return cast("Policy", load_entry(GROUP, "policy loader or module", loader)(path))


def _load_own(source: str) -> Policy:
    """Return the policy that `module:name` is, or that calling it gives."""
    module, name, *argument = source.split(":", 2)
    policy: Any = load_named(f"{module}:{name}", "policy")
    if (isinstance(policy, type) or _lacking(policy)) and callable(policy):
        try:
            policy = policy(*argument)
        except GpcError:
            raise
        except Exception as error:
            raise InputError(f"policy {source}: {cause(error)}") from None
    elif argument:
        raise InputError(f"policy {source}: {module}:{name} is no function; leave out {argument[0]!r}")
    if lacking := _lacking(policy):
        raise InputError(
            f"policy {source} is a {type(policy).__name__} without {', '.join(lacking)}; docs/your-own-policy.md has the protocol"
        )
    return cast("Policy", policy)


def _lacking(thing: object) -> list[str]:
    return [name for name in PROTOCOL if not hasattr(thing, name)]


def bundled_cards() -> dict[str, dict[str, Any]]:
    """Read `card.json` of every bundled policy, by name."""
    from gpc.card import CARD, read

    return {name: read(folder / CARD) for name, folder in bundled_folders().items()}
