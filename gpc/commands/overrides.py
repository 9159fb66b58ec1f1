"""Overrides as typed in a shell: text that Hydra's grammar would not take is quoted for it.

File names of the field hold `=`, commas, brackets, `#`, `~`, quotes and letters of every alphabet, as
`epoch=0550-test_mean_score=0.969.ckpt`. Input that is valid as it is, quoted or not, keeps its meaning.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from gpc.errors import InputError
from gpc.policy.sources import split_source

SHOWN = ("cfg", "c", "info", "i", "resolve", "package", "p", "hydra-help")
REPEATED = ("multirun", "m")
OUTPUT = ("o", "out", "output", "output_dir", "output-dir")
"""Options of Hydra and of other tools, without dashes."""

PIECE = re.compile(r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")\s*(?=,|$)|(?:\\.|[^,])*""", re.DOTALL)
"""An entry of a list up to its comma: in quotes, or with escaped commas alone."""


def quoted(override: str, kind: Any) -> str:
    """Quote the text in an override.

    Args:
        override: KEY=VALUE.
        kind: type of the key's value; only text and lists of texts are quoted.

    Raises:
        InputError: If it has no "=", a list does not end, or it can be read in two ways.
    """
    key, equals, value = override.partition("=")
    if not equals and not key.startswith("~"):
        raise InputError(f"{override!r} is no KEY=VALUE; spaces need quotes, as in 'policies=[a, b]'")
    entries = value.strip()
    if kind in (list[str] | str, list[str] | None) and entries[:1] == "[":
        if entries[-1:] != "]":
            raise InputError(f"{override!r} has no closing bracket; spaces need quotes, as in 'policies=[a, b]'")
        return f"{key}=[{','.join(map(_quote, _entries(key, entries[1:-1])))}]"
    if kind in (str, str | None, list[str] | str) and equals:
        text = _text(value)
        return override if text is None else f"{key}={_quote(text)}"
    return override


def without_dashes(command: str, option: str, following: str, keys: list[str]) -> str:
    """Return what to write for an option with dashes, as other tools have them.

    Args:
        command: command.
        option: argument that begins with a dash.
        following: argument behind it.
        keys: keys of the command.
    """
    word, equals, value = option.lstrip("-").partition("=")
    if word in SHOWN:
        return f"{option}: gpc {command} -h shows keys and defaults; manifest.json of a run holds its configuration"
    if word in REPEATED:
        return f"{option}: one command is one run; a loop of the shell runs several"
    if not equals:
        value = "VALUE" if following.startswith("-") or "=" in following else following or "VALUE"
    key = "run_dir" if word in OUTPUT and "run_dir" in keys else _near(word.replace("-", "_"), keys)[0]
    meant = shlex.quote(f"{key}={value}")
    return f"{option}: settings are KEY=VALUE without dashes, as in {meant}; gpc {command} -h lists the keys"


def nearest(word: str, keys: list[str]) -> str:
    """Return the end of an error line: the five nearest keys, by group."""
    first, *others = _near(word, keys)
    meant = f"did you mean {first!r}?" if get_close_matches(word, [first]) else f"the nearest is {first!r};"
    grouped: dict[str, list[str]] = {}
    for key in others:
        grouped.setdefault(key.partition(".")[0] if "." in key else "", []).append(key)
    return f"; {meant} also {'; '.join(', '.join(group) for group in grouped.values())}"


def _near(word: str, keys: list[str]) -> list[str]:
    return get_close_matches(word, keys, n=5, cutoff=0.0)


def _entries(key: str, content: str) -> list[str]:
    """Return the texts of a list; a comma belongs to a name if a file has that name."""
    pieces = list(_pieces(content)) if content.strip() else []
    entries = []
    while pieces:
        counts = [n for n in range(len(pieces), 1, -1) if _exists(",".join(pieces[:n]).strip())]
        count = counts[0] if counts else 1
        name = ",".join(pieces[:count]).strip() if counts else _text(pieces[0])
        if counts and _exists(pieces[0].strip()):
            raise InputError(
                f"{key}: both {pieces[0].strip()!r} and {name!r} exist; put the one that is meant in quotes"
            )
        entries.append(pieces[0].strip() if name is None else name)
        pieces = pieces[count:]
    return entries


def _pieces(content: str) -> Iterator[str]:
    position = 0
    while position <= len(content):
        piece = PIECE.match(content, position)
        assert piece is not None
        yield piece[0]
        position = piece.end() + 1


def _exists(source: str) -> bool:
    loader, path = split_source(source)
    try:
        return "," not in loader and Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # no name of a file, or of a user
        return False


def _text(value: str) -> str | None:
    """Return the text that Hydra reads in a value; the value itself if it reads none.

    None for null.
    """
    try:
        read = OverridesParser.create().parse_override(f"x={value}").value()
    except HydraException:
        read = value.strip()
    return read if read is None or isinstance(read, str) else value.strip()


def _quote(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())
