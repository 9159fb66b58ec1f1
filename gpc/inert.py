"""Make text from outside inert wherever it is shown: in a terminal, on a page, in a figure, as a file name.

Names of policies, settings, paths, and messages of servers, robots and libraries are data. None of them may style or
steer a terminal, add an element to a page, run as a formula in a figure or choose a folder.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import sys
import threading
import traceback
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib import resources
from types import TracebackType
from typing import TYPE_CHECKING, Any

import rich.console
from rich.segment import Segment
from rich.text import Text

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.figure import Figure

LONGEST_LABEL = 120  # characters of one text in a figure
LONGEST_REPR = 118  # characters of one object in a session
LONGEST_FILE_NAME = 255  # bytes, the limit of ext4, APFS and NTFS
FORBIDDEN = re.compile(r'[/\\:*?"<>|]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def line(text: str) -> str:
    r"""Return `text` as one line without hidden characters.

    Control characters, line breaks, format characters (zero width, direction of writing) and lone surrogates become
    escapes like \u202e; spaces of any width become a space. All other letters and signs of any script stay.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def lines(text: str) -> str:
    """Return `text` with its line breaks kept, each line as `line` returns it."""
    return "\n".join(map(line, text.split("\n")))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


class Console(rich.console.Console):  # noqa: TID251
    r"""A terminal without markup, emoji codes and hidden characters.

    One string is one line; several lines are several arguments with `sep="\n"`. Styles are given as `rich.text.Text`.
    """

    def render_str(self, text: str, *, style: Any = "", justify: Any = None, overflow: Any = None, **_: Any) -> Text:
        """Return the Text of a string, of a table's cells and titles too."""
        return Text(line(text), style=style, justify=justify, overflow=overflow)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of a renderable in the terminal's encoding."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._encodable(lines(segment.text)), segment.style)

    def _encodable(self, text: str) -> str:
        encoding = self.encoding
        return text if encoding.startswith("utf") else text.encode(encoding, "backslashreplace").decode(encoding)


def notice(text: str) -> None:
    """Print one line about the work on stderr."""
    Console(stderr=True).print(f"gpc: {text}", soft_wrap=True)


@lru_cache(maxsize=256)
def notice_once(text: str) -> None:
    """Print one line on stderr, at its first call only."""
    notice(text)


class _LogFormat(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))


def guard_process() -> None:
    """Make tracebacks, and log records without a handler, inert."""
    if logging.lastResort:
        logging.lastResort.setFormatter(_LogFormat())
    sys.excepthook = _print_traceback
    threading.excepthook = lambda failure: _print_traceback(
        failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback
    )


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        sys.stderr.write(lines("".join(traceback.format_exception(kind, error, trace))))


@cache
def template(name: str) -> Template:
    """Return a page template of this package, in which every value is escaped."""
    from jinja2 import Environment, StrictUndefined

    pages = Environment(autoescape=True, undefined=StrictUndefined, finalize=_shown_on_page)
    return pages.from_string(resources.files("gpc").joinpath(name).read_text(encoding="utf-8"))


def _shown_on_page(value: object) -> object:
    return lines(value) if isinstance(value, str) and not isinstance(value, Script) else value


class Script(str):
    """A script of an installed package, which a page holds unescaped."""

    def __html__(self) -> str:
        return self

    @property
    def digest(self) -> str:
        """Digest by which a Content-Security-Policy allows this script alone."""
        return f"sha256-{base64.b64encode(hashlib.sha256(self.encode()).digest()).decode()}"


def plain_texts(content: Any) -> Any:
    """Return plain data in which every text is one line without hidden characters."""
    if isinstance(content, dict):
        return {plain_texts(key): plain_texts(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain_texts(item) for item in content]
    return line(content) if isinstance(content, str) else content


def figure(drawing: Figure) -> None:
    """Make every text of a figure inert: one short line without formulas and TeX.

    matplotlib writes the numbers at the ticks when it draws; they are not changed.
    """
    import matplotlib.text

    for text in drawing.findobj(matplotlib.text.Text):
        if isinstance(text, matplotlib.text.Text) and text.get_text():
            text.set(text=label(text.get_text()), parse_math=False, usetex=False)


def label(text: str) -> str:
    """Return `text` as one line, cut in its middle to `LONGEST_LABEL` characters."""
    return short(text, LONGEST_LABEL)


def short(text: str, length: int) -> str:
    """Return `text` as one line, cut in its middle to an even number of characters."""
    whole, half = line(text), length // 2
    return whole if len(whole) <= length else f"{whole[: half - 1]}…{whole[-half:]}"


def file_name(text: str) -> str:
    """Return `text` as the name of one file or folder, on any system.

    Separators, colons and other reserved or hidden characters become "-". Dots, dashes and spaces are cut off at the
    start, dots and spaces at the end. A name longer than `LONGEST_FILE_NAME` bytes ends in a digest of the full name.
    Other names are unchanged.
    """
    name = "".join(character if character.isprintable() else "-" for character in FORBIDDEN.sub("-", text))
    name = name.lstrip("-. ").rstrip(". ") or "unnamed"
    if RESERVED.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) <= LONGEST_FILE_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: LONGEST_FILE_NAME - 13].decode(errors='ignore')}-{digest}"
