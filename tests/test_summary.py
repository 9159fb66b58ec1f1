"""What a search claims: near the best, not the best, and what its episodes can tell."""

import numpy as np
import pytest

from gpc.results.eval_info import eval_info
from gpc.results.run_folder import Row
from gpc.results.stats import pairs_needed, resolution
from gpc.results.summary import optimality_gap, summarize_evaluation, summarize_search

RATES = np.array([0.5, 0.55, 0.6, 0.63, 0.65, 0.65, 0.64, 0.62, 0.6, 0.55, 0.5])


def rows_of(phase, wins):
    """Rows of an array (candidates, seeds) of successes."""
    k = len(wins)
    weights = [(1 - c / (k - 1), c / (k - 1)) for c in range(k)]
    return [
        Row(phase, c, seed, weights[c], bool(won), float(won), 9) for c in range(k) for seed, won in enumerate(wins[c])
    ]


def grouped(rows):
    curve = {}
    for row in rows:
        curve.setdefault(row.candidate, []).append(row)
    return curve


def test_the_winner_is_within_epsilon_of_the_best():
    rng = np.random.default_rng(0)
    gaps, bounds = [], []
    for _ in range(60):
        wins = rng.random((11, 100)) < RATES[:, None]
        winner = int(wins.sum(1).argmax())
        gaps.append(100 * (RATES.max() - RATES[winner]))
        bounds.append(optimality_gap(grouped(rows_of("search", wins)), winner))
    assert (np.array(gaps) <= bounds).mean() > 0.95
    assert np.mean(np.array(gaps) > 0) > 0.4  # "the best" would have been wrong as often
    assert np.mean(bounds) < 35


def test_epsilon_uses_pairs_and_allows_for_the_number_of_candidates():
    wins = np.zeros((11, 200), bool)
    wins[:, :120] = True  # all alike, so that pairs never differ
    alike = optimality_gap(grouped(rows_of("search", wins)), 4)
    assert alike < 6
    assert optimality_gap(grouped(rows_of("search", wins[:2])), 1) < alike
    apart = np.array([np.roll(wins[0], 7 * c) for c in range(11)])
    assert optimality_gap(grouped(rows_of("search", apart)), 4) > alike


def test_without_search_episodes_nothing_is_claimed():
    assert optimality_gap({}, 0) is None
    assert optimality_gap(grouped(rows_of("search", np.ones((2, 9), bool))), 5) is None


@pytest.fixture
def searched():
    rng = np.random.default_rng(1)
    search = rows_of("search", rng.random((3, 40)) < 0.6)
    report = rows_of("report", rng.random((3, 200)) < [[0.5], [0.65], [0.6]])
    return summarize_search(["a", "b"], search, report, 1, {"a": 0, "b": 2}, 0)


def test_a_verdict_says_what_its_budget_can_and_cannot_tell(searched):
    share = searched["pc_discordant"] / 100
    assert 0.4 < share < 0.55
    text = searched["verdict"]
    assert f"200 report seeds resolve differences of {100 * resolution(200, share):.0f} points and more" in text
    assert f"5 points take about {pairs_needed(0.05, share)}." in text
    assert (
        f"within {searched['optimality_gap_ci95']:.0f} points of the best of the 3 weights tried: near the best, not the best"
        in text
    )


def test_a_winner_that_is_the_best_parent_claims_no_test_of_itself():
    wins = np.random.default_rng(2).random((2, 50)) < 0.5
    summary = summarize_search(["a", "b"], rows_of("search", wins), rows_of("report", wins), 0, {"a": 0, "b": 0}, 0)
    assert summary["pc_discordant"] == 0
    assert "report seeds resolve" not in summary["verdict"]
    assert summary["verdict"].startswith("No mixture looked better than a single policy on the search seeds. With")
    assert summary["verdict"].endswith("Use a alone.")


@pytest.mark.parametrize(
    ("rates", "winner", "use"),
    [
        ([0.2, 0.8, 0.3], 1, "Use weights [0.5, 0.5]."),
        ([0.5, 0.55, 0.2], 1, "Use a alone, unless more report episodes show the gain."),
        ([0.9, 0.5, 0.2], 1, "Use a alone."),
        ([0.4, 0.5, 0.8], 0, "Use b alone."),  # the better parent by the report seeds
    ],
)
def test_a_verdict_ends_in_what_to_use(rates, winner, use):
    draws = np.random.default_rng(3).random(100)
    report = draws < np.array(rates)[:, None]
    summary = summarize_search(["a", "b"], [], rows_of("report", report), winner, {"a": 0, "b": 2}, 0)
    assert summary["verdict"].endswith(use)


def test_an_evaluation_has_lerobots_keys_too():
    rows = [Row("evaluate", 0, seed, (1.0,), seed > 7, seed / 10, 5, sum_reward=2.0 * seed) for seed in (7, 8)]
    timing = {"n_episodes": 2, "seconds_per_episode": 3.0, "ms_per_chunk": None}
    info = eval_info(rows, summarize_evaluation(["a"], rows, 0) | {"timing": timing}, "pusht")
    figures = {"avg_sum_reward": 15, "avg_max_reward": 0.75, "pc_success": 50, "n_episodes": 2, "video_paths": []}
    assert info["overall"] == figures | {"eval_s": 6, "eval_ep_s": 3}
    assert info["per_group"] == {"pusht": figures}
    assert info["per_task"][0]["metrics"]["successes"] == (False, True)
    assert [episode["seed"] for episode in info["per_episode"]] == [7, 8]
    older = [Row("evaluate", 0, 7, (1.0,), True, 1.0, 5)]
    info = eval_info(older, summarize_evaluation(["a"], older, 0) | {"timing": None}, "pusht")
    assert (info["overall"]["avg_sum_reward"], info["overall"]["eval_s"]) == (None, None)
