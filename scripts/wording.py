"""Check the language of code and docs.

    python scripts/wording.py [PATH ...]

Plain technical English: functions are no persons, field terms, no names of earlier versions, nouns for variables. Exit status
1 if a line breaks a rule. `make lint` runs it.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("gpc", "policies", "envs", "robots", "configs", "docs", "README.md", "CONTRIBUTING.md")
HISTORY = ("CHANGELOG.md", "wording.py")  # name what was renamed
UPGRADES = "upgrade.py"  # maps old names in run folders

WORDS = {
    r"nobody|whoever|everybody|somebody|anybody|strangers?": "name the thing: a client, a thread, a policy",
    r"knows|sees|asks": "persons: has, reads, requests, calls",
    r"dear": "expensive",
    r"mend(s|ed|ing)?": "fix",
    r"told|tells|said|says|speaks?|hears|heard|opinions?": "persons: passes, returns, contains, calls, mask",
    r"but for": "except",
    r"so many": "this many, n",
    r"goes on": "resumes, continues",
    r"whole of|as a whole": "all, full",
    r"has a say|have a say|no part in": "contributes, is ignored",
    r"as it is at": "at",
}
"""Words of prose that are not plain technical English, and what to write."""

PHRASES = {
    r"^See `": "begin with a verb and its object",
    r"Raises? (\w+Error|RunError|Stopped)\b(?!:)": "a section `Raises:` with `Error: If ...`",
    r"^\s+\w+Error: [wW]here\b": "`If`, for a condition",
    r"\b(None|True|False|itself|empty|zeros?) where\b": "`if`, for a condition",
}
"""Patterns of docstrings that are not Google style."""

LOCALS = ("found", "own", "told", "shown", "given", "kept", "seen", "said", "asked", "heard", "begun")
"""Names of variables that say when a value came, not what it is."""

OLD_NAMES = (
    "ABSURD", "Adapted", "Aligned", "BY_POLICY", "Centred", "Decided", "Demos", "ENOUGH", "Followed", "Gate",
    "Overheard", "Parted", "Patience", "Pilot", "Proposing", "RUGGED", "Raised", "Shifted", "Stitch",
    "TURNS", "Told", "Weightable", "Weighted", "Wiring", "_Flight", "_at_the_door", "_objection", "_quietly",
    "_settle", "_told_apart", "_trouble", "actions_of_some", "centre_of", "check_alone", "common_actions",
    "curved", "folder_of", "from_cube", "in_bytes", "leave_a_core", "most_typical", "opinion", "opinions",
    "reusing", "rivals", "say_notes", "simulator_of", "spare_starts", "taken_apart", "to_cube",
    "warn_of_searched",
)  # fmt: skip
"""Identifiers of earlier versions; CHANGELOG.md has their successors."""

LONGEST = 79  # characters of a docstring's first line, as in PEP 257


def problems(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, problem) of one file."""
    text = path.read_text()
    if path.suffix != ".py":
        for number, line in enumerate(_without_code(text).splitlines(), 1):
            yield from ((number, problem) for problem in _words(line))
        yield from _old_names(text)
        return
    tree = ast.parse(text)
    for number, prose in (*_comments(text), *_texts(tree)):
        yield from ((number, problem) for problem in _words(prose))
    if path.name != UPGRADES:
        yield from _old_names(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ((getattr(node, "lineno", 1), problem) for problem in _docstring(node))
        for name in _assigned(node):
            if name in LOCALS:
                yield node.lineno, f"variable {name!r}: a noun that names the value"


def _words(line: str) -> Iterator[str]:
    for pattern, instead in WORDS.items():
        match = re.search(rf"\b({pattern})\b", line, re.IGNORECASE)
        if match:
            yield f"{match[0]!r}: {instead}"


def _old_names(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        for name in re.findall(rf"\b({'|'.join(OLD_NAMES)})\b", line):
            yield number, f"{name!r}: a name of an earlier version"


def _docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text is None:
        return
    name = getattr(node, "name", "module")
    first = text.splitlines()[0]
    if len(first) > LONGEST and not isinstance(node, ast.Module):
        yield f"docstring of {name}: first line of {len(first)} characters, at most {LONGEST}"
    for pattern, instead in PHRASES.items():
        if re.search(pattern, text, re.MULTILINE):
            yield f"docstring of {name}: {instead}"


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield texts of the code, docstrings among them, line by line; what has no space is a key or a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from enumerate(node.value.splitlines(), node.lineno)


def _comments(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def _assigned(node: ast.AST) -> Iterator[str]:
    """Yield the variables that a statement or a comprehension sets, and arguments."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg


def _without_code(text: str) -> str:
    """Blank code blocks and spans of Markdown, whose names are the code's."""
    blank = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`", blank)


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of code, docs and configurations under these paths."""
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in inside if file.suffix in (".py", ".md", ".yaml") and file.name not in HISTORY)


def main() -> int:
    """Print every problem and return the exit status."""
    count = 0
    for path in files([Path(arg) for arg in sys.argv[1:]] or [ROOT / name for name in FOLDERS]):
        for line, problem in sorted(problems(path)):
            print(f"{path}:{line}: {problem}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
