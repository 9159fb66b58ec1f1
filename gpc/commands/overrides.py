"""Overrides as typed in a shell: text that Hydra's grammar would not take is quoted for it.

File names of the field hold `=`, commas, brackets, `#`, `~`, quotes and letters of every alphabet, as
`epoch=0550-test_mean_score=0.969.ckpt`. Input that is valid as it is, quoted or not, keeps its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from gpc.errors import InputError
from gpc.policy.sources import split_source

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
