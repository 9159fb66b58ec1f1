"""`gpc report` over one run and over several, of strangers too: no page is lost, nothing on it or in a terminal acts."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import NAMES, harmful
from made_up import random_search, write_evaluation

from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.results import report


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two searches and an evaluation, beside the current folder."""
    monkeypatch.chdir(tmp_path)
    random_search(tmp_path / "two", ["a", "b"], lambda _: 6, 20, step=0.25)
    random_search(tmp_path / "three", ["a", "b", "c"], lambda i: 2 + 6 * (i % 5 == 0), 20, step=0.25, seed=1)
    write_evaluation(tmp_path / "alone", ["d"], (1.0,), {200_000 + i: i % 3 == 0 for i in range(20)})
    return tmp_path


def test_one_run_gains_its_figures_and_episodes_to_look_at(runs):
    assert main(["report", "three"]) == 0
    page = (runs / "three/report.html").read_text()
    for name in ("curve", "outcomes", "progress"):
        assert (runs / f"three/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("data:image/png;base64") == 3
    assert "won by the mixture alone" in page
    assert "gpc replay three --episode K" in page
    assert not (runs / "study.html").exists()


def test_several_runs_give_one_page(runs, capsys):
    assert main(["report", "two", "three", "alone", "two/"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    page = (runs / "study.html").read_text()
    assert "Push, at most 4 steps" in told
    assert "Push, at most 4 steps" in page
    assert page.count("<h2>Progress</h2>") == 1
    assert page.count("data:image/png;base64") == 1 + 2 * 2
    assert "http" not in page.replace("http-equiv", "")
    assert all(f"<h2>{name}</h2>" in page for name in ("two", "three", "alone"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "takes run folders"),
        (["two", "nowhere"], "nowhere is not a finished gpc run"),
        (["x" * 300], "File name too long"),
    ],
)
def test_what_is_no_run_is_one_line_and_nothing_is_written(runs, capsys, arguments, words):
    assert main(["report", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (runs / "study.html").exists()


def test_folders_that_cannot_be_reported_are_left_out_of_a_study_with_a_line_each(runs, capsys):
    (runs / "diagnose-push").mkdir()
    for name in ("deploy-arm", "older", "damaged"):
        shutil.copytree(runs / "alone", name)
    Path("deploy-arm/summary.json").write_text('{"reason": "time"}')
    Path("older/summary.json").write_text(Path("older/summary.json").read_text().replace('version": 2', 'version": 0'))
    with Path("damaged/episodes.jsonl").open("a") as rows:
        rows.write("{}\n")
    assert main(["report", "two", "diagnose-push", "deploy-arm", "older", "damaged", "three"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: left out: ")]
    words = (
        "diagnose-push is not a finished",
        "deploy-arm/summary.json has no",
        "older/summary.json has",
        "line 21 is damaged",
    )
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 4
    page = (runs / "study.html").read_text()
    (runs / "study.html").unlink()
    assert "A study of 2 runs" in page
    assert main(["report", "diagnose-push", "diagnose-push"]) == 2
    assert "diagnose-push is not a finished gpc run" in capsys.readouterr().err


def test_tables_fit_80_columns_and_few_episodes_have_no_interval(runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    write_evaluation(runs / "few", ["d", "pusht-keypoints"], (0.4, 0.6), {1: True, 2: False})
    for arguments in (["report", "two"], ["report", "few"], ["report", "two", "three", "alone"]):
        assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if not line.startswith(("report:", "device:"))]
    assert max(map(len, table)) <= 80
    assert "\u2026" not in "".join(table)
    assert any(line.split()[-2:] == ["50.0", "0.500"] for line in lines)  # without intervals
    assert any("35.0 [18.1, 56.7]" in line for line in lines)
    assert "seeds: evaluate 1 to 2; 95 % intervals from 5 episodes on" in " ".join(lines)


class Elements(HTMLParser):
    """(tag, attributes' names) of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, *(key for key, _ in attributes)))

    def handle_data(self, data):
        self.text += data


SHOWN = ("{{ 7 * 7 }}{% for %}", "model[best]", "x[/bold]", "$a$", "a$b$c", "<script>alert(1)</script>")


def test_runs_with_hostile_names_are_reported_like_any_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "2000")
    names = [*SHOWN, "n" * 300, " ".join(name for name in NAMES if name != "\udc80")]  # which is no text of JSON
    random_search(tmp_path / "plain", [f"policy {k}" for k in range(len(names))], lambda _: 2, 3, 1.0)
    random_search(tmp_path / "hostile", names, lambda _: 2, 3, 1.0)
    pages = {}
    for run in ("plain", "hostile"):
        assert main(["report", run]) == 0
        pages[run] = Elements((tmp_path / run / "report.html").read_text())
    assert pages["hostile"].tags == pages["plain"].tags
    output = capsys.readouterr()
    assert (harmful(output.out), output.err) == (set(), "")
    assert main(["report", "hostile", "plain"]) == 0
    study, printed = Elements((tmp_path / "study.html").read_text()).text, capsys.readouterr().out
    assert harmful(printed) == set()
    for text in (pages["hostile"].text, study, output.out, printed):
        assert [name for name in SHOWN if name not in text] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hostile", "plain", "study.html"]


def test_a_summary_writes_no_element(runs):
    summary = json.loads((runs / "two/summary.json").read_text())
    (runs / "two/summary.json").write_text(json.dumps(summary | {"infrastructure_errors": "<script>alert(1)</script>"}))
    assert main(["report", "two"]) == 2
    (runs / "two/summary.json").write_text(json.dumps(summary | {"verdict": "<script>alert(2)</script>"}))
    assert main(["report", "two"]) == 0
    page = Elements((runs / "two/report.html").read_text())
    assert {tag for tag, *_ in page.tags} == {
        "meta",
        "title",
        "style",
        "h1",
        "h2",
        "p",
        "img",
        "table",
        "tr",
        "th",
        "td",
        "pre",
    }
    assert "<script>alert(2)</script>" in page.text


def test_a_part_that_fails_is_one_line_and_the_rest_is_written(runs, monkeypatch, capsys):
    def fail(*_):
        raise InputError("the figures of a report need matplotlib")

    monkeypatch.setattr(report, "weight_plot", fail)
    monkeypatch.setattr(report, "outcomes", lambda *_: 1 / 0)
    assert main(["report", "three"]) == 0
    page, errors = Elements((runs / "three/report.html").read_text()), capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert errors[0].endswith("need matplotlib")
    assert all(line.removeprefix("gpc: ") in page.text for line in errors)
    assert [tag for tag, *_ in page.tags].count("img") == 1  # the progress
    assert main(["report", "two", "three"]) == 0
    assert "Progress" in (runs / "study.html").read_text()


def test_a_page_that_cannot_be_written_is_one_line(runs, capsys):
    (runs / "two/report.html").mkdir()
    assert main(["report", "two"]) == 1
    assert "two/report.html cannot be written" in capsys.readouterr().err


def test_a_study_is_written_before_it_is_printed(runs, monkeypatch):
    monkeypatch.setattr("gpc.inert.Console.print", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["report", "two", "three"])
    assert (runs / "study.html").exists()
