"""`gpc report` over one run and over several, of strangers too: no page is lost, nothing on it or in a terminal acts."""

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hostile import NAMES, harmful
from made_up import ENV, random_search, write_evaluation, write_search

from gpc.commands import live_page
from gpc.commands.cli import main
from gpc.errors import InputError
from gpc.inert import Console
from gpc.results import charts
from gpc.results import report as report_module
from gpc.results.charts import episode_table, outcome_chart
from gpc.results.leaderboard import read_begun, read_run
from gpc.results.run_folder import Row
from gpc.results.video import chosen


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two searches and an evaluation, beside the current folder."""
    monkeypatch.chdir(tmp_path)
    random_search(tmp_path / "two", ["a", "b"], lambda _: 6, 20, step=0.25)
    random_search(tmp_path / "three", ["a", "b", "c"], lambda i: 2 + 6 * (i % 5 == 0), 20, step=0.25, seed=1)
    write_evaluation(tmp_path / "alone", ["d"], (1.0,), {200_000 + i: i % 3 == 0 for i in range(20)})
    return tmp_path


def test_one_run_gains_its_charts_and_episodes_to_look_at(runs):
    assert main(["report", "three"]) == 0
    page = (runs / "three/report.html").read_text()
    assert (runs / "three/curve.png").read_bytes().startswith(b"\x89PNG")
    charts = Elements(page).charts
    names = ("success over the weights", "outcome of every report seed", "outcome of every search seed")
    assert [name for name, _ in charts] == [
        *names,
        "episodes spent on each weights",
        "episodes spent against the best",
        "episodes",
    ]
    assert "won by the mixture alone" in page
    assert "gpc replay three --episode K" in page
    assert not (runs / "study.html").exists()


def test_cells_of_a_page_are_the_rows_sorted_so_that_what_the_mixture_alone_wins_is_on_top(runs):
    a, b, mix = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
    report = {mix: {1: 0, 2: 1, 3: 1}, a: {1: 0, 2: 1, 3: 0}, b: {1: 0, 2: 0, 3: 0}}
    write_search(runs / "run", ["a", "b"], {mix: {7: 1, 8: 0}, a: {7: 1}, b: {7: 0}}, report, mix)
    run = read_run(runs / "run")
    names = report_module.names_of(run)
    cells = outcome_chart(run, "report", names).renderers[0].data_source.data
    assert [*zip(cells["x"], cells["y"], cells["seed"], cells["result"], strict=True)] == [
        (x, y, seed, "won" if report[w][seed] else "lost")
        for x, w in enumerate((mix, a, b))
        for y, seed in ((-2, 1), (-1, 2), (0, 3))
    ]
    table, filters = episode_table(run, names)
    cells = table.source.data
    assert [cells["result"][i] for i in range(len(run.rows))] == ["lost"] * 8 + ["won"] * 5
    assert filters["outcome"] == ["lost by all", "won by the mixture alone", "won by the mixture and some parents"]
    assert [run.rows[k].seed for k in cells["episode"]] == cells["seed"].tolist()


def test_several_runs_give_one_page(runs, capsys):
    assert main(["report", "two", "three", "alone", "two/"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    page = (runs / "study.html").read_text()
    assert "Push, at most 4 steps" in told
    parts = Elements(page)
    assert "Push, at most 4 steps" in parts.text
    assert [name for name, _ in parts.charts].count("episodes spent against the best") == 1
    assert len(parts.charts) == 1 + 2 * 2 + 1
    assert [parts.headings[anchor] for anchor in parts.contents] == [
        "Push, at most 4 steps",
        "Progress",
        "two",
        "three",
        "alone",
    ]


def test_a_study_of_several_tasks_has_a_table_of_all(runs):
    write_evaluation(runs / "longer", ["d"], (1.0,), {200_000 + i: i < 5 for i in range(20)}, ENV | {"max_steps": 9})
    assert main(["report", "alone", "longer"]) == 0
    parts = Elements((runs / "study.html").read_text())
    assert parts.headings[parts.contents[0]] == "All tasks"
    assert "Push, at most 4 stepsPush, at most 9 stepsd35.0 (7/20)25.0 (5/20)" in parts.text


def test_a_page_links_to_nothing_outside(runs):
    assert main(["report", "two"]) == 0
    page = Elements((runs / "two/report.html").read_text())
    assert [link for link in page.links if not link.startswith(("#", "data:"))] == []


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
    """(tag, attributes' names) of a page, its text, the items of its charts, its links, its headings and contents."""

    def __init__(self, page):
        super().__init__()
        self.heading = None
        self.tags, self.text, self.charts, self.links, self.headings, self.contents = [], "", [], [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, *found))
        if "data-item" in found:
            self.charts.append((found.get("aria-label", "episodes"), json.loads(found["data-item"])))
        self.links += [found[key] for key in ("src", "href", "srcset", "action", "data", "poster") if key in found]
        if tag == "a":
            self.contents.append(found["href"].removeprefix("#"))
        self.heading = found["id"] if tag == "h2" else None

    def handle_data(self, data):
        if self.lasttag in ("style", "script"):
            return
        self.text += data
        if self.heading:
            self.headings[self.heading] = data
            self.heading = None


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
    assert Counter(tag for tag, *_ in page.tags)["script"] == 3  # Bokeh's two and gpc's own
    assert "<script>alert(2)" not in (runs / "two/report.html").read_text()
    assert "<script>alert(2)</script>" in page.text


def test_a_part_that_fails_is_one_line_and_the_rest_is_written(runs, monkeypatch, capsys):
    def fail(*_):
        raise InputError("the figures of a report need bokeh")

    monkeypatch.setattr(charts, "check_charts", fail)
    monkeypatch.setattr(report_module, "outcomes", lambda *_: 1 / 0)
    assert main(["report", "three"]) == 0
    page, errors = Elements((runs / "three/report.html").read_text()), capsys.readouterr().err.splitlines()
    assert len(errors) == 7
    assert errors[0].endswith("need bokeh")
    assert all(line.removeprefix("gpc: ") in page.text for line in errors)
    assert page.charts == []
    assert [tag for tag, *_ in page.tags].count("script") == 0
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


def test_an_unfinished_run_is_reported_too(runs, capsys):
    whole = json.loads((runs / "two/summary.json").read_text())
    (runs / "two/summary.json").unlink()
    rows = (runs / "two/episodes.jsonl").read_text().splitlines(keepends=True)
    for count, least in (
        (10, 3),
        (31, 5),
        (len(rows), 5),
    ):  # in the search, before the winner's report seeds, at the end
        (runs / "two/episodes.jsonl").write_text("".join(rows[:count]))
        assert main(["report", "two"]) == 0
        page = Elements((runs / "two/report.html").read_text())
        assert report_module.UNFINISHED in page.text
        assert len(page.charts) >= least
        assert str(count) in json.dumps(page.charts[-1])
        assert "the same command resumes it" in " ".join(capsys.readouterr().out.split())
    begun = read_begun(runs / "two").summary
    assert begun["candidates"] == whole["candidates"]
    assert begun["winner"] == whole["winner"]
    assert sorted(begun["parents"], key=str) == sorted(whole["parents"], key=str)
    (runs / "two/episodes.jsonl").write_text("")
    assert main(["report", "two"]) == 2
    assert "no episode of it has finished" in capsys.readouterr().err


def test_a_page_that_renews_itself_stops_when_the_run_does(runs, monkeypatch, capsys):
    monkeypatch.setattr(live_page, "FIRST", 0)
    (runs / "alone/summary.json").unlink()
    page = live_page.LivePage(Console())
    page.stop(runs / "alone")
    assert not (runs / "alone/report.html").exists()  # as none was written before
    for _ in range(2):
        page.renew(runs / "alone", lambda: "evaluate: 20 of 50 episodes, 0:10:00 left")
    shown = Elements((runs / "alone/report.html").read_text())
    assert "20 of 50 episodes, 0:10:00 left" in shown.text
    assert ("meta", "http-equiv", "content") in shown.tags[3:]
    assert capsys.readouterr().out.count("renews itself") == 1
    page.stop(runs / "alone")
    ended = (runs / "alone/report.html").read_text()
    assert 'http-equiv="refresh"' not in ended
    assert report_module.UNFINISHED in ended
    shutil.rmtree(runs / "alone")
    page.stop(runs / "alone")
    assert "the page of the run so far is missing" in capsys.readouterr().err


def test_a_gallery_has_a_video_of_each_seed_with_what_happened(runs):
    (runs / "two/episodes.mp4").write_bytes(b"film")
    (runs / "two/episodes.json").write_text('[{"seed": 200003, "start": 0.0, "end": 1.5}]')
    assert main(["report", "two"]) == 0
    page = (runs / "two/report.html").read_text()
    assert 'data-file="ZmlsbQ=="' in page
    assert 'data-seed="200003" data-start="0.0" data-end="1.5"' in page
    assert page.count("<figcaption>seed 200003. ") == 1
    (runs / "two/episodes.json").write_text('[{"seed": "<b>", "start": 0.0, "end": 1.5}]')
    assert main(["report", "two"]) == 0
    assert "two/episodes.json" in Elements((runs / "two/report.html").read_text()).text


def test_seeds_of_the_video_are_chosen_by_outcome():
    def played(outcomes):
        return {seed: Row("report", 0, seed, (1.0,), bool(won), 0.0, 1) for seed, won in enumerate(outcomes)}

    groups = [played([int(c) for c in text]) for text in ("1101011", "1001100")]
    assert chosen(groups, 7) == [1, 4, 5, 6, 2, 0, 3]
    assert chosen(groups, 2) == [1, 4]
    assert chosen(groups[:1], 4) == [2, 4, 0, 1]  # of one policy: failures first
