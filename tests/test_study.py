"""What several runs say together, against hand computation, scipy and simulation."""

import re
from itertools import product

import numpy as np
import pytest
from made_up import ENV, random_search, write_evaluation, write_search
from scipy import stats

from gpc.errors import InputError, RunError
from gpc.results.leaderboard import OUTCOMES, Entry, entries, leaderboard, outcome, outcomes, progress, read_run, tasks
from gpc.results.run_folder import Row

A, B, MIX = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
REPORT = range(200, 240)


def won(first, seeds=REPORT):
    """The first so many seeds are won."""
    return {seed: i < first for i, seed in enumerate(seeds)}


def search(path, report, policies=("a", "b"), **more):
    tried = {weights: {100: True, 101: False} for weights in (A, MIX, B)}
    return write_search(path, list(policies), tried, report, MIX, **more)


@pytest.fixture
def pair(tmp_path):
    return read_run(search(tmp_path / "pair", {A: won(10), B: won(4), MIX: won(25)}))


def test_a_leaderboard_has_the_figures_of_scipy(pair):
    first, second, third = leaderboard(entries([pair]))
    assert [line.entry.name for line in (first, second, third)] == ["0.5 a + 0.5 b", "a", "b"]
    assert (first.entry.successes, len(first.entry.rows)) == (25, 40)
    interval = stats.binomtest(25, 40).proportion_ci(method="wilson")
    assert first.ci95 == pytest.approx((interval.low, interval.high))
    assert first.parent.other.name == "a"
    assert first.parent.difference == pytest.approx(15 / 40)
    assert first.parent.p_value == pytest.approx(stats.binomtest(15, 15).pvalue)  # 15 seeds differ, all one way
    assert second.parent is third.parent is None
    assert second.p_best == pytest.approx(2 * 0.5**15)  # one-sided, two comparisons
    assert [line.near_best for line in (first, second, third)] == [True, False, False]


def test_pairs_are_the_shared_seeds_only(tmp_path):
    mixed = write_evaluation(tmp_path / "mixed", ["a", "b"], MIX, won(8, range(0, 10)))
    alone = write_evaluation(tmp_path / "alone", ["a"], (1.0,), {seed: seed % 2 == 0 for seed in range(6, 40)})
    other = write_evaluation(tmp_path / "other", ["c"], (1.0,), won(30, range(50, 80)))
    lines = {line.entry.name: line for line in leaderboard(entries([read_run(p) for p in (mixed, alone, other)]))}
    parent = lines["0.5 a + 0.5 b"].parent
    assert (parent.n, parent.difference) == (4, 0)  # seeds 6 to 9: 6, 7 against 6, 8
    assert lines["c"].p_best == lines["a"].p_best == 1  # nothing shared with the best: not told apart


def test_a_policy_of_several_runs_is_one_entry_unless_they_disagree(tmp_path):
    runs = [read_run(search(tmp_path / name, {A: won(10), B: won(4), MIX: won(5)}, ("a", name))) for name in "xy"]
    found = {entry.name: entry for entry in entries(runs)}
    assert sorted(found) == ["0.5 a + 0.5 x", "0.5 a + 0.5 y", "a", "x", "y"]
    assert found["a"].runs == (runs[0].path, runs[1].path)
    runs.append(read_run(search(tmp_path / "z", {A: won(11), B: won(4), MIX: won(5)}, ("a", "z"))))
    assert [entry.successes for entry in entries(runs) if entry.name == "a"] == [10, 11]


def test_weights_in_parts_are_told_apart_and_parents_are_not(tmp_path):
    """Two rows of weights, one after another: at large and at small noise."""
    parts = {(1.0, 0.0, 1.0, 0.0): won(10), (0.0, 1.0, 0.0, 1.0): won(4), (0.75, 0.25, 0.5, 0.5): won(25)}
    both = write_search(tmp_path / "parts", ["a", "b"], {}, parts, (0.75, 0.25, 0.5, 0.5))
    one = search(tmp_path / "one", {A: won(10), B: won(4), MIX: won(5)})
    runs = [read_run(path) for path in (both, one)]
    found = {entry.name: len(entry.runs) for entry in entries(runs)}
    assert found == {"[0.75, 0.5] a + [0.25, 0.5] b": 1, "0.5 a + 0.5 b": 1, "a": 2, "b": 2}
    assert len(outcomes(runs[0], "report")) == 40


def test_episodes_on_search_seeds_do_not_rank(pair, tmp_path):
    again = read_run(write_evaluation(tmp_path / "again", ["a", "b"], (0.25, 0.75), won(4, range(98, 104))))
    found = {entry.name: entry for entry in entries([pair, again])}
    assert sorted(found["0.25 a + 0.75 b"].rows) == [98, 99, 102, 103]


def test_the_truly_best_is_rarely_missing_from_the_set_and_a_bad_one_mostly_is():
    """All but the last are equally good: each of them may be called the best, so each must be in the set."""
    rng, missing, bad, repetitions = np.random.default_rng(0), 0, 0, 150
    for _ in range(repetitions):
        shared = rng.random(60)  # a seed is hard for all
        tables = [(0.5 * shared + 0.5 * rng.random(60)) < rate for rate in (0.5, 0.5, 0.5, 0.5, 0.2)]
        made = [
            Entry(
                ((str(i), "", (1.0,)),),
                "",
                "",
                (),
                {s: Row("", i, s, (1.0,), bool(w), 0.0, 1) for s, w in enumerate(t)},
            )
            for i, t in enumerate(tables)
        ]
        near = {line.entry.name for line in leaderboard(made) if line.near_best}
        missing += "0" not in near
        bad += "4" in near
    assert missing <= 0.05 * repetitions
    assert bad < 0.05 * repetitions


def test_every_outcome_of_a_seed_has_its_name(tmp_path):
    patterns = dict(enumerate(product([True, False], repeat=3), 200))  # mixture, a, b
    report = {w: {seed: p[i] for seed, p in patterns.items()} for i, w in enumerate((MIX, A, B))}
    found = outcomes(read_run(search(tmp_path / "run", report)), "report")
    wanted = [2, 1, 1, 0, 4, 3, 3, 5]
    assert [OUTCOMES.index(found[seed]) for seed in patterns] == wanted
    assert outcome(True, [False, False, False]) == "won by the mixture alone"
    assert outcome(False, [True, True, True]) == "lost by the mixture alone"


def test_a_winner_that_is_a_parent_has_no_outcomes(tmp_path):
    tried = {A: {1: True}, B: {1: False}}
    run = read_run(write_search(tmp_path / "run", ["a", "b"], tried, {A: won(9), B: won(4)}, A))
    assert outcomes(run, "report") == {}


def test_progress_is_that_of_the_leader_by_wilsons_lower_end():
    told = [(0, 1), (1, 1), (1, 1), (0, 0), (0, 1), (2, 1)]  # (candidate, success)
    rows = [Row("search", c, seed, (1.0,), bool(s), 0.0, 1) for seed, (c, s) in enumerate(told)]
    assert progress(rows) == pytest.approx([2 / 3, 2 / 3, 1, 1, 1, 1])  # 0 leads until 1 has two wins


def test_tasks_are_told_apart_by_more_than_their_name(tmp_path):
    longer, other = ENV | {"max_steps": 9}, ENV | {"options": {"size": 3}}
    paths = [
        write_evaluation(tmp_path / str(i), ["a"], (1.0,), won(3), env) for i, env in enumerate((ENV, longer, other))
    ]
    assert list(tasks([read_run(path) for path in paths])) == [
        "Push, at most 4 steps",
        "Push, at most 9 steps",
        'Push, at most 4 steps {"size": 3}',
    ]


def damaged(tmp_path, name, content):
    path = random_search(tmp_path / "run", ["a", "b"], lambda _: 2, 3, step=0.5)
    content = content((path / name).read_text())
    (path / name).unlink() if content is None else (path / name).write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("summary.json", lambda _: None, InputError, "not a finished gpc run"),
        ("summary.json", lambda text: text[:50], InputError, r"summary\.json: Input data was truncated"),
        ("summary.json", lambda _: "[]", InputError, r"summary\.json: Expected `object`"),
        ("summary.json", lambda text: text.replace('"search"', '"race"', 1), InputError, "kind: Invalid value 'race'"),
        (
            "summary.json",
            lambda text: text.replace('"n_episodes": 2', '"n_episodes": "2"', 1),
            InputError,
            "n_episodes: ",
        ),
        ("summary.json", lambda text: text.replace('"p_value": 1.0', '"p_value": NaN', 1), InputError, "malformed"),
        ("summary.json", lambda text: re.sub(r'"parents": \[.*?\}\]', '"parents": []', text), InputError, "parents: "),
        (
            "summary.json",
            lambda text: text.replace("[1.0, 0.0]", "[1.0]", 1),
            InputError,
            "weights do not fit 2 policies",
        ),
        (
            "manifest.json",
            lambda text: text.replace('"max_steps": 4', '"max_steps": "4"'),
            InputError,
            r"env\.max_steps: ",
        ),
        (
            "manifest.json",
            lambda text: text.replace('"b": "print', '"c": "print'),
            InputError,
            "config: fingerprints lack b",
        ),
        (
            "episodes.jsonl",
            lambda text: text.replace("[1.0, 0.0]", "[1.0]", 1),
            InputError,
            "line 1: candidate or weights",
        ),
        ("manifest.json", lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), InputError, "not 1"),
        (
            "manifest.json",
            lambda text: text.replace('"max_steps": 4', '"max_steps": 4, "x": ' + '{"x": ' * 600 + "1" + "}" * 600),
            InputError,
            "nested more than 64 levels deep",
        ),
        ("episodes.jsonl", lambda text: text.replace("phase", "phrase", 1), RunError, "line 1 is damaged: "),
        ("episodes.jsonl", lambda text: text[: len(text) // 2], InputError, "episodes.jsonl holds"),
    ],
)
def test_a_damaged_or_unfinished_run_is_one_line(tmp_path, name, content, error, words):
    with pytest.raises(error, match=words) as caught:
        read_run(damaged(tmp_path, name, content))
    assert "\n" not in str(caught.value)
