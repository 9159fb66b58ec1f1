"""`gpc report` over one run and over several."""

import sqlite3

import pytest
from made_up import random_search, write_evaluation

from gpc.cli import main


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
    assert not (runs / "study.db").exists()


def test_several_runs_give_one_page_and_one_store(runs, capsys):
    assert main(["report", "two", "three", "alone", "two/"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    page = (runs / "study.html").read_text()
    assert "Push, at most 4 steps" in told
    assert "Push, at most 4 steps" in page
    assert page.count("<h2>Progress</h2>") == 1
    assert page.count("data:image/png;base64") == 1 + 2 * 2
    assert "http" not in page
    assert all(f"<h2>{name}</h2>" in page for name in ("two", "three", "alone"))
    with sqlite3.connect(runs / "study.db") as database:
        counts = dict(database.execute("SELECT run, count(*) FROM episodes GROUP BY run"))
    assert counts == {
        name: len((runs / name / "episodes.jsonl").read_text().splitlines()) for name in ("two", "three", "alone")
    }


@pytest.mark.parametrize(
    ("arguments", "words"), [([], "takes run folders"), (["two", "nowhere"], "nowhere is not a finished gpc run")]
)
def test_what_is_no_run_is_one_line_and_nothing_is_written(runs, capsys, arguments, words):
    assert main(["report", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (runs / "study.html").exists()


def test_a_store_that_cannot_be_written_is_one_line(runs, capsys):
    (runs / "study.db").mkdir()
    assert main(["report", "two", "three"]) == 2
    assert "study.db cannot be written" in " ".join(capsys.readouterr().err.split())
