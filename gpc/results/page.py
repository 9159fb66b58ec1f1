"""A page of results: one HTML file (`gpc/page.html`) with its charts and their scripts, and without a link to outside."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpc.disk import write_atomically
from gpc.errors import InputError, missing
from gpc.inert import Script, notice, plain_texts, template
from gpc.installation import install

if TYPE_CHECKING:
    from bokeh.model import Model

Block = tuple[
    Literal["heading", "contents", "verdict", "state", "text", "note", "facts", "fold", "unfold", "code", "table", "picture",
            "video", "clips", "chart", "episodes"], Any
]  # fmt: skip
"""A part of a page and its content: text; rows of text, the head first; (name, value) of each fact; (alternative text,
source); source; (file, clips); what `chart` returns; indices of headings. From "fold" to "unfold" is folded."""


def write_page(path: Path, title: str, blocks: Sequence[Block], refresh: int = 0) -> Path:
    """Write a page and return its path.

    Args:
        path: The file.
        title: Its title.
        blocks: Its parts.
        refresh: Seconds after which a browser reads the page again; 0: never.

    Raises:
        RunError: If it cannot be written.
    """
    kinds = {kind for kind, _ in blocks}
    parts = ("bokeh", "bokeh-tables") if "episodes" in kinds else ("bokeh",)
    scripts = [*map(_bokeh, parts), _own()] if kinds & {"chart", "episodes"} else []
    wide = any(clip["wide"] for kind, content in blocks if kind == "clips" for clip in content[1])
    page = template("page.html").render(title=title, blocks=blocks, refresh=refresh, scripts=scripts, wide_clips=wide)
    write_atomically(path, page + "\n")
    return path


def section(what: str, build: Callable[[], list[Block]]) -> list[Block]:
    """Return the blocks of one part; one line in its place if it fails.

    The episodes have run: the page must not be lost.
    """
    try:
        return build()
    except Exception as error:
        notice(missing(what, error))
        return [("text", missing(what, error))]


def chart(name: str, draw: Callable[[], Model | None], replay: str = "", **more: Any) -> list[Block]:
    """Return the block of an interactive chart.

    Args:
        name: What it shows.
        draw: Function of `gpc.results.charts`; nothing is shown if it returns None.
        replay: Start of the command that runs a selected episode again.
        more: Settings of the table of episodes.
    """

    def build() -> list[Block]:
        model = draw()
        if model is None:
            return []
        from bokeh.embed import json_item

        content = {"name": name, "replay": replay, "item": json.dumps(plain_texts(json_item(model))), **more}
        return [("episodes" if more else "chart", content)]

    return section(f"the chart, {name},", build)


def data_uri(content: bytes, kind: str) -> str:
    """Return a file as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def check_charts() -> None:
    """Check that charts can be drawn.

    Raises:
        InputError: If Bokeh is missing.
    """
    try:
        import bokeh  # noqa: F401
    except ImportError:
        raise InputError(f"the charts of a page need bokeh: {install('report')}") from None


@cache
def _bokeh(name: str) -> Script:
    return Script(resources.files("bokeh").joinpath(f"server/static/js/{name}.min.js").read_text(encoding="utf-8"))


@cache
def _own() -> Script:
    return Script(resources.files("gpc").joinpath("page.js").read_text(encoding="utf-8"))
