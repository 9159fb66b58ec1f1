"""Figures show what is in the run folder: also of races, with few episodes here and many there, and of no rollouts at all."""

import inspect
import re

import numpy as np
import pytest
from hostile import NAMES
from made_up import random_search, write_search
from matplotlib.text import Text

from gpc.results import figures
from gpc.results.figures import png, weight_plot
from gpc.results.leaderboard import read_run
from gpc.weights.simplex import one_hot


def race(path, policies, step=0.25):
    return read_run(random_search(path, policies, lambda i: 20 if i in (1, 2) else 3, 10, step))


def legend(axes):
    return [text.get_text() for text in (axes.get_legend() or axes.figure.legends[0]).get_texts()]


def test_a_curve_is_ordered_by_weight_and_its_points_are_as_large_as_their_episodes_are_many(tmp_path):
    run = race(tmp_path / "run", ["a", "b"])
    (axes,) = weight_plot(run.summary).axes
    points = axes.collections[1]
    np.testing.assert_allclose(points.get_offsets()[:, 0], [0, 0.25, 0.5, 0.75, 1])
    rates = {c["weights"][0]: c["pc_success"] for c in run.summary["candidates"]}
    np.testing.assert_allclose(points.get_offsets()[:, 1], [rates[x] for x in (0, 0.25, 0.5, 0.75, 1)])
    assert points.get_sizes()[2] == pytest.approx(points.get_sizes()[0] * 20 / 3)
    assert "search seeds, 3 to 20 episodes each" in legend(axes)
    winner = next(text for text in legend(axes) if text.startswith("winner"))
    assert winner.endswith("report seeds, 10 episodes")


def test_three_policies_give_a_triangle(tmp_path):
    run = race(tmp_path / "run", ["a", "b", "c"])
    axes = weight_plot(run.summary).axes[0]
    assert axes.name == "ternary"
    search, *marks = axes.collections
    np.testing.assert_allclose(search.get_array(), [c["pc_success"] for c in run.summary["candidates"]])
    reported = [p["pc_success"] for p in (*run.summary["parents"], run.summary["winner"])]
    assert [mark.get_array()[0] for mark in marks] == pytest.approx(reported)
    assert len(np.unique(search.get_offsets(), axis=0)) == 15
    assert "search seeds, 3 to 20 episodes each" in legend(axes)


def test_four_policies_give_a_point_for_each_candidate(tmp_path):
    run = race(tmp_path / "run", ["a", "b", "c", "d"], 0.5)
    axes = weight_plot(run.summary).axes[0]
    assert len(axes.collections[1].get_offsets()) == len(axes.get_xticks()) == 10


@pytest.mark.parametrize("policies", [["a", "b"], ["a", "b", "c"]])
def test_a_search_without_rollouts_shows_its_report_seeds(tmp_path, policies):
    middle = tuple(1 / len(policies) for _ in policies)
    parents = [one_hot(i, len(policies)) for i in range(len(policies))]
    report = {w: {1: True, 2: False} for w in (middle, *parents)}
    run = read_run(write_search(tmp_path / "run", policies, {}, report, middle))
    assert png(weight_plot(run.summary)).startswith(b"\x89PNG")


FIRST, SECOND = " ".join(name for name in NAMES if len(name) < 300 and name != "\udc80"), "n" * 300  # no text of JSON
NUMBER = re.compile(r"[^$a-z]+|\$\\mathdefault\{[^$]*\}\$")  # at a tick, by matplotlib
PICTURE, CHUNKS = np.zeros((8, 8, 3), np.uint8), {FIRST: np.zeros((2, 4, 2)), SECOND: np.ones((2, 4, 2))}
SIGMAS = [0.01, 0.1, 1.0]
ERRORS = {
    "sigmas": SIGMAS,
    "rms": {FIRST: [0.1, 0.2, 0.3], SECOND: [0.2, 0.2, 0.2]},
    "weights_per_level": [[0.5, 0.5]] * 3,
    "weights": [0.5, 0.5],
    "correlation": [[[1, 0.5], [0.5, 1]]] * 3,
}
APART = {
    "sigmas": SIGMAS,
    "disagreement_by_sigma": {f"{FIRST} and {SECOND}": [0.1, 0.2, 0.3]},
    "disagreement_by_decision": {f"{FIRST} and {SECOND}": [0.1, 0.2]},
}
DRAWN = {
    "weight_plot": lambda run: weight_plot(run.summary),
    "success_plot": lambda run: figures.success_plot(run.summary | run.summary["winner"]),
    "error_plot": lambda _: figures.error_plot(ERRORS),
    "disagreement_plot": lambda _: figures.disagreement_plot(APART),
    "chunk_plot": lambda _: figures.chunk_plot(CHUNKS, PICTURE, lambda places: places),
}


THREE, FOUR = [FIRST, SECOND, "$a$"], [FIRST, SECOND, "$", "$$"]
CASES = [(name, [FIRST, SECOND]) for name in DRAWN] + [("weight_plot", THREE), ("weight_plot", FOUR)]


@pytest.mark.parametrize(("name", "policies"), CASES, ids=[f"{name}-{len(policies)}" for name, policies in CASES])
def test_every_figure_is_drawn_with_hostile_names(name, policies, tmp_path):
    figure = DRAWN[name](race(tmp_path / "run", policies, 0.5))
    assert png(figure).startswith(b"\x89PNG")
    written = [text for text in figure.findobj(Text) if text.get_text()]
    assert all(text.get_text().isprintable() and len(text.get_text()) <= 120 for text in written)
    parsed = {text.get_text() for text in written if text.get_parse_math()}
    assert {text for text in parsed if not NUMBER.fullmatch(text)} == set()


def test_chunks_without_places_are_drawn_with_hostile_names():
    assert png(figures.chunk_plot(CHUNKS, PICTURE, None)).startswith(b"\x89PNG")


def test_every_function_that_draws_a_figure_is_tested_with_hostile_names():
    drawing = [
        name
        for name, kind in inspect.getmembers(figures, inspect.isfunction)
        if kind.__module__ == "gpc.results.figures"
    ]
    assert {name for name in drawing if getattr(figures, name).__annotations__["return"] == "Figure"} == {
        *DRAWN, "_curve", "_triangle", "_chunk_curves", "_figure",
    }  # fmt: skip


def test_a_users_matplotlibrc_does_not_hand_names_to_tex(tmp_path):
    from matplotlib import rc_context

    with rc_context({"text.usetex": True}):
        figure = figures.chunk_plot({r"\input{/etc/passwd}": np.zeros((2, 4, 2))}, PICTURE, lambda places: places)
    figures.inert.figure(figure)
    (title,) = [axes.title for axes in figure.axes]
    assert not title.get_usetex()
    assert title.get_text() == r"\input{/etc/passwd}"


def test_a_figure_does_not_depend_on_the_style_of_the_user(tmp_path, monkeypatch):
    """As a matplotlibrc in the current folder would set it."""
    import matplotlib

    run = race(tmp_path / "run", ["a", "b"])
    plain = png(weight_plot(run.summary))
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "savefig.dpi", 20)
    assert png(weight_plot(run.summary)) == plain
    assert matplotlib.rcParams["axes.facecolor"] == "red"
