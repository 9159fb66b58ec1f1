"""Tables of the pages under docs/results, as lines of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpc.commands.cli import main as command
from gpc.policies.bundled import BUNDLED, CARD
from gpc.results.leaderboard import Run
from gpc.results.run_folder import read_json
from gpc.results.stats import mcnemar, mean_interval, paired_difference

ROOT = Path(__file__).parents[1]
MEASURED = (
    "n_episodes", "seeds", "n_success", "pc_success", "pc_success_ci95", "avg_max_reward", "avg_max_reward_ci95",
)  # fmt: skip
DIFFUSION = "robomimic's diffusion policy: DDPM noise prediction, 1D U-Net, low-dimensional observations"
IMAGE = "DDPM noise prediction, 1D U-Net, one 84x84 RGB camera"
NOT_BUNDLED = {
    "lerobot-pusht": "LeRobot's diffusion policy, trained here by `lerobot-train`; agent position and keypoints",
    "lift-image": IMAGE,
    "can-diffusion": DIFFUSION,
    "can-image": IMAGE,
    "square-diffusion": DIFFUSION,
    "square-flow": "rectified-flow velocity, transformer, state",
    "square-image": IMAGE,
}
"""What the policies are whose weights are not in the repository."""


def run(kind: str, folder: Path, sources: Sequence[str], *keys: str) -> dict[str, Any]:
    """Run `gpc evaluate` or `gpc search`, unless it is finished; return the summary."""
    if command([kind, *keys, f"policies=[{','.join(sources)}]", f"run_dir={folder}", "video=0"]) != 0:
        raise SystemExit(1)
    return read_json(folder / "summary.json")


def percent(figures: Mapping[str, Any]) -> str:
    low, high = figures["pc_success_ci95"]
    return f"{figures['pc_success']:.1f} [{low:.1f}, {high:.1f}]"


def reward(figures: Mapping[str, Any]) -> str:
    low, high = figures["avg_max_reward_ci95"]
    return f"{figures['avg_max_reward']:.3f} [{low:.3f}, {high:.3f}]"


def short(name: str) -> str:
    """Return a name without the task that it begins with."""
    return name if name == "lerobot-pusht" else name.partition("-")[2] or name


def mixture(weights: Sequence[float]) -> str:
    return ", ".join(f"{w:g}" for w in weights)


def change(after: Sequence[bool], before: Sequence[bool]) -> tuple[str, float]:
    """Return the paired difference in points with its 95 % interval, and McNemar's p."""
    low, high = paired_difference(after, before)
    difference = (sum(after) - sum(before)) / len(after)
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", mcnemar(after, before)


def successes(run: Run) -> list[bool]:
    """Return success by seed of an evaluation."""
    return [row.success for row in sorted(run.rows)]


def parents_of(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the figures of every policy on the report seeds.

    They are the same in each of its pairs.
    """
    parents: dict[str, dict[str, Any]] = {}
    for run in runs:
        for parent in run.summary["parents"]:
            figures = {key: parent[key] for key in MEASURED}
            if parents.setdefault(parent["name"], figures) != figures:
                raise SystemExit(f"{parent['name']} differs between its pairs: {run.path}")
    return parents


def parents_table(runs: Sequence[Run]) -> list[str]:
    lines = ["| policy | what it is | episodes | success % | score |", "|---|---|---|---|---|"]
    for name, figures in parents_of(runs).items():
        what = NOT_BUNDLED.get(name) or json.loads((BUNDLED / name / CARD).read_text())["summary"]
        lines.append(f"| {name} | {what} | {figures['n_episodes']} | {percent(figures)} | {reward(figures)} |")
    return lines


def best_parent(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the figures of the better parent on the report seeds."""
    return next(parent for parent in summary["parents"] if parent["name"] == summary["best_parent"])


def winners_table(runs: Sequence[Run]) -> list[str]:
    """Return winner against best parent for each search, sums and verdicts."""
    lines = [
        "| pair | winner | success % | best parent | success % | gain, points | p (McNemar) | score gain | p (paired t) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    summaries = [run.summary for run in runs]
    for s in summaries:
        best, (low, high) = best_parent(s), s["avg_max_reward_gain_ci95"]
        lines.append(
            f"| {pair_of(s)} | {mixture(s['winner']['weights'])} | {percent(s['winner'])} | {short(best['name'])} | "
            f"{percent(best)} | {s['pc_success_gain']:+.1f} | {s['p_value']:.2g} | "
            f"{s['avg_max_reward_gain']:+.3f} [{low:+.3f}, {high:+.3f}] | {s['p_value_score']:.2g} |"
        )
    verdicts = [f"- {pair_of(s)}: {s['verdict']}" for s in summaries]
    return [*lines, "", *(_sums(summaries) if len(summaries) > 1 else []), *verdicts]


def _sums(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how many winners gain, and their excess of success on search seeds."""
    gains = [s for s in summaries if s["p_value"] < 0.05 and s["pc_success_gain"] > 0]
    strict = [s for s in gains if s["p_value"] < 0.05 / len(summaries)]
    optimism = [_on_search_seeds(s) - s["winner"]["pc_success"] for s in summaries]
    low, high = mean_interval(optimism)
    return [
        f"{len(gains)} of {len(summaries)} winners beat their best parent on success with p < 0.05; {len(strict)} with",
        f"p < 0.05 / {len(summaries)}, which allows for {len(summaries)} tests. On its search seeds the winner had",
        f"{np.mean(optimism):+.1f} points [{low:+.1f}, {high:+.1f}] more than on fresh ones.",
        "",
    ]


def pair_of(summary: Mapping[str, Any]) -> str:
    return " + ".join(map(short, summary["policies"]))


def _on_search_seeds(summary: Mapping[str, Any]) -> float:
    winner = summary["winner"]["weights"]
    return next(float(c["pc_success"]) for c in summary["candidates"] if c["weights"] == winner)


def settings_table(rows: Mapping[str, Run], label: str) -> list[str]:
    """Return success and score of evaluations; `rows` names each line."""
    lines = [f"| {label} | success % | score | run |", "|---|---|---|---|"]
    for name, run in rows.items():
        lines.append(f"| {name} | {percent(run.summary)} | {reward(run.summary)} | `{run.path.name}` |")
    return lines


def operators_table(names: Mapping[str, str], columns: Mapping[str, Mapping[str, Run]]) -> list[str]:
    """Return success of the operators on each task, and the difference to convex.

    Args:
        names: What each operator is, by the name of its run.
        columns: Runs by operator, for each task.
    """
    head = " | ".join(f"{task}: success % | against the convex sum" for task in columns)
    lines = [f"| | {head} |", "|---" * (2 * len(columns) + 1) + "|"]
    for key, what in names.items():
        cells = []
        for runs in columns.values():
            low, high = runs[key].summary["pc_success_ci95"]
            cells.append(f"{runs[key].summary['pc_success']:.0f} [{low:.0f}, {high:.0f}]")
            against = change(successes(runs[key]), successes(runs["convex"]))
            cells.append("" if key in ("first", "second", "convex") else f"{against[0]}, p = {against[1]:.2g}")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def best_of_table(rows: Mapping[str, tuple[Run, Run]]) -> list[str]:
    """Return one chunk against best of 4 on the same seeds."""
    lines = ["| | one chunk: success % | best of 4 | difference, points | p (McNemar) |", "|---" * 5 + "|"]
    for name, (one, four) in rows.items():
        difference, p_value = change(successes(four), successes(one))
        lines.append(f"| {name} | {percent(one.summary)} | {percent(four.summary)} | {difference} | {p_value:.2g} |")
    return lines


def less_table(head: str, first: Run, rows: Mapping[str, Run]) -> list[str]:
    """Return evaluations, and the paired difference of `first` to each."""
    lines = [f"| {head} | success % | convex less this, points | p (McNemar) |", "|---|---|---|---|"]
    for name, run in rows.items():
        difference, p_value = change(successes(first), successes(run))
        cells = " | " if run is first else f"{difference} | {p_value:.2g}"
        lines.append(f"| {name} | {percent(run.summary)} | {cells} |")
    return lines


def row_weights_table(rows: Mapping[str, Run]) -> list[str]:
    """Return searches of weights in two rows; `rows` gives the first two cells."""
    lines = ["| task | composer | episodes | winner | success % | best parent | gain |", "|---" * 7 + "|"]
    for cells, run in rows.items():
        s = run.summary
        best, spent = best_parent(s), sum(row.phase == "search" for row in run.rows)
        weights = s["winner"]["weights"]
        middle = len(weights) // 2
        lines.append(
            f"| {cells} | {spent} | {mixture(weights[:middle])}; {mixture(weights[middle:])} | {percent(s['winner'])} | "
            f"{short(best['name'])} {percent(best)} | {s['pc_success_gain']:+.1f}, p = {s['p_value']:.2g} |"
        )
    return lines


def simplex_table(grid: Run, others: Mapping[str, Run]) -> list[str]:
    """Return the winners of a grid and of other searches, and the parents."""
    first = grid.under("report", grid.summary["winner"]["weights"])
    lines = [
        "| search | episodes | winner | success on the report seeds, % | against the grid's winner |",
        "|---" * 5 + "|",
    ]
    for name, run in {f"grid, {len(grid.summary['candidates'])} weights": grid, **others}.items():
        winner = run.summary["winner"]
        rows = run.under("report", winner["weights"])
        against = change([rows[seed].success for seed in first], [row.success for row in first.values()])
        spent = sum(row.phase == "search" for row in run.rows)
        last = "" if run is grid else f"{against[0]}, p = {against[1]:.2g}"
        lines.append(f"| {name} | {spent:,} | {mixture(winner['weights'])} | {percent(winner)} | {last} |")
    lines += [f"| {p['name']} alone | | {mixture(p['weights'])} | {percent(p)} | |" for p in grid.summary["parents"]]
    best = [f"{name} {run.summary['pc_success_gain']:+.1f} (p = {run.summary['p_value']:.2g})"
            for name, run in {"grid": grid, **others}.items()]  # fmt: skip
    return [*lines, "", f"Gain of the winners over the best parent, in points: {'; '.join(best)}."]
