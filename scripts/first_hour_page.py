"""Write docs/first-hour.md below its first part: the commands of tests/first_hour.sh, each with its time and output.

    python scripts/first_hour_page.py            # runs tests/first_hour.sh in a temporary folder
    python scripts/first_hour_page.py FOLDER     # takes the folder in which it has run

tests/test_first_hour.py checks that commands and the shape of their outputs are still those of the page.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/first-hour.md"
BEGIN = "<!-- scripts/first_hour_page.py writes what follows -->\n"
HEAD, TAIL = 6, 14  # lines of an output that are shown


def recorded(folder):
    """The part of the page that a run in a folder gives."""
    text, title = [BEGIN], ""
    for step in sorted((folder / "steps").glob("*")):
        if step.suffix == ".title":
            words = step.read_text()
            title = f"\n### {words[0].upper()}{words[1:]}\n"
        elif step.suffix == ".command":
            arguments = step.read_text().split("\0")[:-1]
            seconds = int(step.with_suffix(".milliseconds").read_text()) / 1000
            command = shown(shlex.join(arguments), folder)
            output = shown(step.with_suffix(".output").read_text(), folder).strip("\n").splitlines()
            lines = cut(output if arguments[0] == "gpc" else output[-2:])
            text.append(f"{title}\n{seconds:.1f} s\n```console\n$ {command}\n" + "\n".join(lines) + "\n```\n")
            title = ""
    return "".join(text)


def shown(text, folder):
    """A text without places of this machine, colours and lines that a terminal replaces."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for place in (folder.resolve(), folder, ROOT.resolve(), Path(sys.prefix), Path.home()):
        text = text.replace(f"{place}/", "")
    return "\n".join(line.rpartition("\r")[2].rstrip() for line in text.split("\n"))


def cut(lines):
    """The first and last lines of an output."""
    return lines if len(lines) <= HEAD + TAIL else [*lines[:HEAD], "...", *lines[-TAIL:]]


def shape(page):
    """Of each command of gpc on the page: the command, the heads of its tables and its last line, numbers masked."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.M | re.S):
        command, *lines = block.splitlines()
        heads = [line for line, rule in zip(lines, lines[1:], strict=False) if set(rule.strip()) == {"─"}]
        if command.startswith("$ gpc "):
            found.append([masked(line) for line in (command, *heads, *lines[-1:])])
    return found


def masked(line):
    """A line with one zero for each number, one space for several, and one sign for a rule."""
    return " ".join(re.sub(r"[─┴]+", "─", re.sub(r"\d[\d.]*", "0", line)).split())


def main(folder=None):
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="first-hour-"))
        subprocess.run(["bash", ROOT / "tests/first_hour.sh", folder], check=True)
    kept = PAGE.read_text().partition(BEGIN)[0]
    PAGE.write_text(kept + recorded(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
