import json

import numpy as np
import pytest
import search_study

from gpc.errors import InputError
from gpc.results.figures import png
from gpc.results.leaderboard import Run
from gpc.results.run_folder import Row
from gpc.weights.bayesian import TreeParzen
from gpc.weights.simplex import simplex


def grid(path, seeds=60, dropped=0, prior=True):
    """A grid of made-up outcomes, the better the nearer the first weight is to 0.7."""
    rng = np.random.default_rng(0)
    draws, rows = rng.random(seeds), []
    for c, weights in enumerate(simplex(2, 0.1)):
        rate = 0.8 - (weights[0] - 0.7) ** 2
        wins = 0.8 * draws + 0.2 * rng.random(seeds) < rate
        rows += [Row("search", c, s, weights, bool(won), rate, 1) for s, won in enumerate(wins)]
    predicted = [{"weights": w, "error": abs(w[0] - 0.7)} for w in simplex(2, 0.1)]
    errors = {"denoising_error": {"predicted": predicted, "weights": [0.68, 0.32]}} if prior else {}
    manifest = {"config": {"policies": ["a", "b"], "search": {"step": 0.1}}}
    return Run(path, manifest, errors, tuple(rows[: len(rows) - dropped]))


def test_a_study_of_two_grids_is_written_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(search_study, "BAYESIAN", {"tpe": TreeParzen})  # the Gaussian process takes a minute
    recordings = [search_study.record(grid(tmp_path / name, prior=name == "known")) for name in ("known", "unknown")]
    path = tmp_path / "regrets.json"
    search_study.study(recordings, 50, 5, path)
    content = json.loads(path.read_text())
    text = "\n".join(search_study.lines_of(recordings, content))
    assert "known, 11 weights, 60 recorded seeds: rank correlation -" in text
    assert "unknown, 11 weights, 60 recorded seeds: no demonstrations" in text
    assert png(search_study.draw(recordings, search_study.results_of(content)))[:4] == b"\x89PNG"
    assert len(content["regrets"]) == (5 * 3 + 2) + (4 * 3 + 1)  # demos has no share
    assert all(len(values) == 5 and min(values) >= 0 for values in content["regrets"].values())
    assert len(set(content["regrets"]["known/demos/0"])) == 1  # it does not depend on episodes
    content["regrets"]["known/racing/0.1"] = [99.0] * 5
    path.write_text(json.dumps(content))
    search_study.study(recordings, 50, 5, path)
    assert json.loads(path.read_text())["regrets"]["known/racing/0.1"] == [99.0] * 5
    with pytest.raises(InputError, match="use another --out"):
        search_study.study(recordings, 40, 5, path)


def test_a_large_budget_leaves_no_regret_in_a_clear_case(tmp_path):
    recording = search_study.record(grid(tmp_path / "run"))
    plans = search_study.searches(recording)
    assert recording.rate.max() - np.median(recording.rate) > 0.01
    for name in ("grid", "racing", "random", "racing + demos"):
        regrets = [np.mean(search_study.simulate(recording, plans[name], budget, 10)) for budget in (110, 11_000)]
        assert regrets[1] <= regrets[0]
        assert regrets[1] < 0.5


def test_an_unfinished_grid_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no finished search=grid: 650 episodes of 11 weights"):
        search_study.record(grid(tmp_path / "run", dropped=10))
