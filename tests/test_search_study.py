import json

import numpy as np
import pytest
import search_study

from gpc.errors import InputError
from gpc.weights.simplex import simplex


def write_run(folder, seeds=60, dropped=0, prior=True):
    """A grid of made-up outcomes, the better the nearer the first weight is to 0.7."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    draws = rng.random(seeds)
    for c, weights in enumerate(simplex(2, 0.1)):
        rate = 0.8 - (weights[0] - 0.7) ** 2
        rows += [
            {
                "phase": "search",
                "candidate": c,
                "seed": s,
                "weights": weights,
                "success": bool(draw < rate),
                "score": rate,
                "steps": 1,
            }
            for s, draw in enumerate(0.8 * draws + 0.2 * rng.random(seeds))
        ]
    lines = [json.dumps(row) + "\n" for row in rows[: len(rows) - dropped]]
    (folder / "episodes.jsonl").write_text("".join(lines))
    (folder / "manifest.json").write_text(json.dumps({"config": {"policies": ["a", "b"], "search": {"step": 0.1}}}))
    predicted = [{"weights": w, "error": abs(w[0] - 0.7)} for w in simplex(2, 0.1)]
    errors = {"denoising_error": {"predicted": predicted, "weights": [0.68, 0.32]}} if prior else {}
    (folder / "summary.json").write_text(json.dumps(errors))
    return folder


def test_a_study_of_two_grids_is_written_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(search_study, "SAMPLERS", {"tpe": "TPESampler"})  # the Gaussian process takes a minute
    runs = [str(write_run(tmp_path / "known")), str(write_run(tmp_path / "unknown", prior=False))]
    ask = [*runs, "--repetitions", "5", "--full", "50", "--out", str(tmp_path / "study")]
    search_study.main(ask)
    page = (tmp_path / "study.md").read_text()
    assert "known, 11 weights, 60 recorded seeds: rank correlation -" in page
    assert "unknown, 11 weights, 60 recorded seeds: none given" in page
    assert (tmp_path / "study.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "study.json").read_text())
    assert len(kept["regrets"]) == (5 * 3 + 2) + (4 * 3 + 1)  # demos has no share
    assert all(len(values) == 5 and min(values) >= 0 for values in kept["regrets"].values())
    assert len(set(kept["regrets"]["known/demos/0"])) == 1  # no episode has a part in it
    kept["regrets"]["known/racing/0.1"] = [99.0] * 5
    (tmp_path / "study.json").write_text(json.dumps(kept))
    search_study.main(ask)
    assert "| racing | 10 % | 99.00 ± 0.00 |" in (tmp_path / "study.md").read_text()


def test_a_large_budget_leaves_no_regret_in_a_clear_case(tmp_path):
    recording = search_study.record(write_run(tmp_path / "run"))
    plans = search_study.searches(recording)
    assert recording.rate.max() - np.median(recording.rate) > 0.01
    for name in ("grid", "racing", "random", "racing + demos"):
        regrets = [np.mean(search_study.simulate(recording, plans[name], budget, 10)) for budget in (110, 11_000)]
        assert regrets[1] <= regrets[0]
        assert regrets[1] < 0.5


def test_an_unfinished_grid_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no finished search=grid: 650 episodes of 11 weights"):
        search_study.record(write_run(tmp_path / "run", dropped=10))
