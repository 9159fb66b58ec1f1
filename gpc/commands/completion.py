"""Tab completion of commands, keys and names, for bash and zsh (README.md has the line that turns it on)."""

from __future__ import annotations

from collections.abc import Sequence

from gpc.policy.sources import bundled_folders


def completions(line: str, replaced: str, commands: Sequence[str]) -> list[str]:
    """Return what the shell may put in place of the word at the end of a line.

    Args:
        line: line up to the cursor.
        replaced: part of its last word that the shell replaces: bash begins a new one after "=".
        commands: names of the commands.
    """
    *words, typed = line.split(" ")
    words = [word for word in words if word]
    typed = typed.lstrip("'\"")
    if len(words) < 2:
        choices = list(commands)
    elif words[1] in ("policies", "doctor"):
        choices = list(bundled_folders())
    else:
        choices = _keys_or_values(words[1], typed)
    return [word[len(typed) - len(replaced) :] for word in choices if word.startswith(typed)]


def _keys_or_values(command: str, typed: str) -> list[str]:
    from gpc.commands.config import groups, known_keys, options

    if command not in ("search", "evaluate", "compare", "diagnose", "serve", "serve-env", "deploy"):
        return []
    key, equals, value = typed.partition("=")
    if not equals:
        return [f"{name}=" for name in known_keys(command)]
    if key == "policies":
        before = value[: max(value.rfind("["), value.rfind(",")) + 1] or "["
        return [f"{key}={before}{name}" for name in bundled_folders()]
    return [f"{key}={name}" for name in options(key)] if key in groups(command) else []
