"""The code blocks of a page of the documentation, run as a reader runs them."""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(page, language="python"):
    """The blocks of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


def write_files(page):
    """Write the blocks that begin with "# NAME.py" to those files of the current folder; return the other ones."""
    others = []
    for block in blocks(page):
        if named := FILE.match(block):
            Path(named[1]).write_text(block)
        else:
            others.append(block)
    return others


def run_python(page, names=None, shorter=None):
    """Run the python blocks of a page as one script of the current folder (`user_folder` of conftest.py).

    Args:
        page: name of the file in docs/.
        names: what the page takes as given.
        shorter: texts of the page and what stands for them here, for fewer episodes.

    Returns:
        The names of the script.
    """
    script = "".join(write_files(page))
    for text, short in (shorter or {}).items():
        assert text in script, f"{page} has no {text}"
        script = script.replace(text, short)
    sys.path.insert(0, os.getcwd())
    names = dict(names or {})
    exec(compile(script, page, "exec"), names)
    return names
