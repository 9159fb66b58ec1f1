"""Text from outside is shown as it is and does nothing: in a terminal, in logs, on a page, in a figure, as a file name."""

import ast
import io
import logging
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import LEGITIMATE, NAMES, harmful
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from gpc import inert
from gpc.commands.cli import main
from gpc.commands.progress import COLUMNS
from gpc.results.page import write_page

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("gpc", "policies", "envs", "robots") for path in (ROOT / folder).rglob("*.py"))
EVERY = [*NAMES, *LEGITIMATE]


@pytest.fixture
def console():
    """A wide terminal in colour that keeps what it receives."""
    return inert.Console(file=io.StringIO(), force_terminal=True, width=2000, color_system="standard")


def received(console):
    return console.file.getvalue()


@pytest.mark.parametrize("name", LEGITIMATE)
def test_what_is_legitimate_is_unchanged_everywhere(name, console):
    console.print(name)
    assert received(console) == f"{name}\n"
    assert inert.line(name) == inert.lines(name) == inert.label(name) == inert.file_name(name) == name
    assert page(name) == [name]


@pytest.mark.parametrize("name", EVERY)
def test_a_line_is_one_printable_line(name):
    shown = inert.line(name)
    assert shown.isprintable()
    assert inert.line(shown) == shown
    assert inert.lines(f"{name}\nend").endswith("\nend")


@pytest.mark.parametrize("name", EVERY)
def test_a_terminal_shows_a_name_as_it_is(name, console):
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    console.print(name)
    console.print(Text(name), soft_wrap=True)
    console.print(table)
    console.print_json(data={"name": name})
    console.print({"name": name}, [Path(name)])
    assert harmful(received(console)) == set()
    assert received(console).startswith(inert.line(name) + "\n")
    assert received(console).count(inert.line(name)) >= 5


@pytest.mark.parametrize("name", EVERY)
def test_a_progress_bar_shows_a_name_as_it_is(name, console):
    with Progress(*COLUMNS, console=console) as progress:
        progress.add_task(name, total=1)
    shown = received(console)
    for own in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r"):  # hides the cursor, clears its lines
        shown = shown.replace(own, "")
    assert harmful(shown) == set()
    assert name in shown or not name.isprintable()  # a column is as wide as the name without its escapes


def test_a_terminal_without_unicode_shows_escapes():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    inert.Console(file=stream).print("β [0.4]", "● best")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u03b2 [0.4] \\u25cf best\n"


def test_a_notice_is_one_line_on_stderr(capsys):
    inert.notice("found [b]x[/] \x1b[2J\nin a file")
    assert capsys.readouterr() == ("", "gpc: found [b]x[/] \\u001b[2J\\u000ain a file\n")


def test_an_error_is_one_line_without_markup(capsys):
    assert main(["policies", "x[/bold]\x1b]0;owned\x07\nline"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpc: no bundled policy and no folder is called 'x[/bold]")
    assert error.count("\n") == 1
    assert harmful(error) == set()


@pytest.mark.parametrize(
    "ending", ["logging.getLogger('gpc').exception('of \\x1b[2J')", "raise", "Thread(target=fail).start()"]
)
def test_logs_and_tracebacks_of_the_command_are_inert(ending):
    code = f"""
import logging
from threading import Thread
from gpc.inert import guard_process
guard_process()
def fail():
    raise ValueError("\\x1b]0;owned\\x07 of a server")
try:
    fail()
except ValueError:
    {ending}
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert "ValueError: \\u001b]0;owned\\u0007 of a server" in done.stderr
    assert "fail()" in done.stderr or "in fail" in done.stderr
    assert harmful(done.stderr) == set()


def test_a_command_guards_its_process(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert main(["--version"]) == 0
    assert sys.excepthook is not sys.__excepthook__
    record = logging.LogRecord("gpc", logging.ERROR, "", 0, "a \x1b message", None, None)
    assert logging.lastResort.format(record) == "a \\u001b message"


def page(text, tags=None):
    """The texts of a page whose every block holds `text`; `tags` collects the elements with their attributes."""
    rows, found = [[text], [text]], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tags is not None:
                tags.append((tag, [key for key, _ in attributes]))
            found.extend(
                value for key, value in attributes if key in ("alt", "src", "data-item", "aria-label", "data-replay")
            )

        def handle_data(self, data):
            if data.strip() and self.lasttag not in ("style", "script"):
                found.append(data)

    blocks = [
        (kind, text) for kind in ("heading", "verdict", "state", "text", "note", "fold", "unfold", "code", "video")
    ]
    blocks += [
        ("table", rows),
        ("picture", (text, text)),
        ("facts", [(text, text), ("command", text)]),
        ("contents", [0]),
    ]
    blocks += [("chart", {"name": text, "replay": text, "item": text})]
    blocks += [("episodes", {"name": text, "replay": text, "item": text, "filters": {text: [text]}})]
    clip = {"seed": text, "start": text, "end": text, "text": text}
    blocks += [("clips", (text, [clip]))]
    Reader().feed(
        inert.template("page.html").render(title=text, blocks=blocks, refresh=0, scripts=[], wide_clips=False)
    )
    assert found[0] == f"gpc: {text}" or not text.isprintable() or not text.strip()
    return [text for text in dict.fromkeys(found[1:]) if text not in ("command", "seed", "all")]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_a_name_as_it_is(name):
    wanted, tags = [], []
    page("name", wanted)
    assert page(name, tags)[:1] == [inert.lines(name)] or not name.strip()
    assert tags == wanted  # not one element, not one attribute more


def test_a_page_may_load_nothing_and_run_its_own_scripts_alone(tmp_path):
    for blocks, scripts in (([], 0), ([("chart", {"name": "", "replay": "", "item": "{}"})], 2)):
        text = write_page(tmp_path / "page.html", "", blocks).read_text()
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
        assert policy.startswith("default-src 'none';")
        allowed = re.search(r"script-src ([^;]*);", policy)[1].split()
        assert allowed == ["'none'"] or len(allowed) == scripts
        assert all(re.fullmatch(r"'(none|sha256-[\w+/=]+)'", source) for source in allowed)
        assert text.index("Content-Security-Policy") < text.index("<title>")
        assert text.count("</script>") == scripts


@pytest.mark.parametrize("name", EVERY)
def test_a_file_name_names_one_file_in_its_folder(name, tmp_path):
    safe = inert.file_name(name)
    assert inert.file_name(safe) == safe
    assert len(safe.encode()) <= 255
    assert safe[0] not in ".- "
    assert not set('/\\:*?"<>|') & set(safe)
    assert safe.split(".")[0].lower() not in ("con", "nul")
    (tmp_path / safe).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [safe]


def test_two_long_names_are_two_files():
    first, second = (inert.file_name("n" * 300 + end) for end in "ab")
    assert first != second
    assert first.startswith("n" * 200)


def strings(path):
    """(node, text) of every string in a file that is no docstring."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, documented)]
    bare = {id(item.value) for body in bodies for item in body if isinstance(item, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


TAG = re.compile(
    r"</?(!doctype|html|h\d|p|b|img|t[dhr]|table|pre|video|title|style|meta|script|a|div|span|svg)\b[^>]*>?", re.I
)


def test_no_html_is_written_in_python():
    assert [(path.name, text) for path in SOURCES for text in strings(path) if TAG.match(text.strip())] == []
    assert [path.name for path in SOURCES if {"Markup", "markupsafe"} & set(re.findall(r"\w+", path.read_text()))] == []
    made = [path.name for path in SOURCES if re.search(r"\bScript\(|__html__", path.read_text())]
    assert made == ["inert.py", "page.py"]  # which makes them of installed files alone
    source = (ROOT / "gpc/page.html").read_text()
    assert not re.search(r"\|\s*safe|autoescape|=\{\{", source)  # every value escaped, in quotes if in an attribute


def test_only_constants_have_markup():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_markup":
                assert isinstance(node.args[0], ast.Name), path
                assert node.args[0].id.isupper(), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "TextColumn":
                assert [key.arg for key in node.keywords if key.arg == "markup"] == ["markup"], path
