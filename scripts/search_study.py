"""Simulate searches on recorded grids: the regret of each search by the episodes that it spends.

    python scripts/search_study.py docs/results/evidence/search.json --repetitions 100 --out docs/results/evidence/regrets.json

The runs of the study are `gpc search ... search=grid` with many episodes for each weight. A repetition draws seeds with
replacement, the same for every search, and the searches read recorded episodes; weights are multiples of the step of the grid,
so that every proposal is recorded. The regret is the best weight's rate of success, over all recorded seeds, less that of the
weight that the search chose. If a run had `demonstrations`, their predictions start "racing + demos" and are "demos".
Interrupt it at any time: the same command resumes. `scripts/pages.py` makes tables and figures of the regrets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from gpc.disk import write_atomically
from gpc.errors import GpcError, InputError
from gpc.results.evidence import Evidence
from gpc.results.leaderboard import Run
from gpc.results.run_folder import read_json
from gpc.weights.bayesian import Bayesian, GaussianProcess, TreeParzen
from gpc.weights.searches import FromDemonstrations, Grid, Outcome, Prior, Racing, Random, Search
from gpc.weights.simplex import Weights, simplex

SHARES = (0.1, 0.2, 0.4)
EPISODES = 10  # of each proposal
APART = 1_000_000  # between the seeds of two repetitions, whose proposals differ
BAYESIAN: dict[str, type[Bayesian]] = {"tpe": TreeParzen, "gp": GaussianProcess}
Results = dict[tuple[str, str, float], np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """Predictions of a summary's denoising errors for the weights of its grid."""

    errors: Mapping[Weights, float]
    weights: Weights

    def predicted(self, weights: Weights) -> float:
        return self.errors[weights]

    def best(self) -> Weights:
        return self.weights


@dataclass(frozen=True)
class Recording:
    """A recorded grid: outcomes (weights, seeds) at every point of the simplex."""

    name: str
    step: float
    points: list[Weights]
    success: np.ndarray
    score: np.ndarray
    prior: Prior | None

    @property
    def rate(self) -> np.ndarray:
        """Success of every point over all seeds, which stands for the true rate."""
        return self.success.mean(1)

    def regret(self, search: Search, seeds: np.ndarray) -> float:
        """Run a search on these recorded seeds; return its regret, in points of success."""
        while jobs := search.ask():
            results = {}
            for candidate, seed in jobs:
                at = self.points.index(search.candidates[candidate]), seeds[seed - search.seeds.start]
                results[candidate, seed] = Outcome(bool(self.success[at]), float(self.score[at]))
            search.tell(results)
        return 100 * float(self.rate.max() - self.rate[self.points.index(search.candidates[search.best()])])


def record(run: Run) -> Recording:
    """Return the outcomes of a run.

    Raises:
        InputError: If it is not a complete grid.
    """
    config = run.manifest["config"]
    points = simplex(len(config["policies"]), config["search"].get("step", 0))
    rows = [row for row in run.rows if row.phase == "search"]
    seeds = {seed: i for i, seed in enumerate(sorted({row.seed for row in rows}))}
    if len(rows) != len(points) * len(seeds) or {row.weights for row in rows} != set(points):
        raise InputError(f"{run.path} is no finished search=grid: {len(rows)} episodes of {len(points)} weights")
    place = {weights: i for i, weights in enumerate(points)}
    success, score = np.zeros((2, len(points), len(seeds)))
    for row in rows:
        success[place[row.weights], seeds[row.seed]] = row.success
        score[place[row.weights], seeds[row.seed]] = row.score
    return Recording(run.path.name, config["search"]["step"], points, success, score, _prior(run))


def recordings_of(study: Evidence, names: Sequence[str] = ()) -> list[Recording]:
    """Return the recordings of a study, or of some of its runs."""
    return [record(study.run(name)) for name in names or study.runs]


def _prior(run: Run) -> Prior | None:
    errors = run.summary.get("denoising_error")
    if errors is None:
        return None
    return Predictions({tuple(p["weights"]): p["error"] for p in errors["predicted"]}, tuple(errors["weights"]))


def searches(recording: Recording) -> dict[str, Callable[[int, int], Search]]:
    """Return every search as a function of a budget and a seed."""
    policies, step, prior = len(recording.points[0]), recording.step, recording.prior

    def grid(budget: int, seed: int) -> Search:
        return Grid(step=step, seed=seed, episodes=budget // len(recording.points)).start(policies)

    def racing(budget: int, seed: int, prior: Prior | None = None) -> Search:
        return Racing(step=step, seed=seed, budget=budget).start(policies, prior)

    def random(budget: int, seed: int) -> Search:
        return Random(step=step, seed=seed, budget=budget, episodes=EPISODES).start(policies)

    def bayesian(kind: type[Bayesian], budget: int, seed: int) -> Search:
        return kind(step=step, seed=seed, budget=budget, episodes=EPISODES).start(policies)

    plans = {"grid": grid, "racing": racing, "random": random} | {
        name: partial(bayesian, kind) for name, kind in BAYESIAN.items()
    }
    if prior:
        plans["racing + demos"] = partial(racing, prior=prior)
        plans["demos"] = lambda budget, seed: FromDemonstrations(step=step).start(policies, prior)
    return plans


def shares(search: str) -> tuple[float, ...]:
    """Return the budgets as shares of the full grid; `demos` runs no episode."""
    return (0.0,) if search == "demos" else SHARES


def simulate(recording: Recording, make: Callable[[int, int], Search], budget: int, repetitions: int) -> list[float]:
    """Return the regret of every repetition."""
    regrets = []
    for repetition in range(repetitions):
        drawn = np.random.default_rng(repetition).integers(0, recording.success.shape[1], budget)
        regrets.append(recording.regret(make(budget, APART * repetition), drawn))
    return regrets


def study(recordings: Sequence[Recording], full: int, repetitions: int, path: Path) -> None:
    """Simulate what the JSON file does not hold yet."""
    settings = {"full": full, "repetitions": repetitions, "runs": [recording.name for recording in recordings]}
    content = read_json(path) if path.exists() else {"settings": settings, "regrets": {}}
    if content["settings"] != settings:
        raise InputError(f"{path} was started with {content['settings']}; use another --out")
    for recording in recordings:
        plans = [(name, make, share) for name, make in searches(recording).items() for share in shares(name)]
        for name, make, share in [*plans, ("grid", searches(recording)["grid"], 1.0)]:
            key = f"{recording.name}/{name}/{share:g}"
            if key not in content["regrets"]:
                budget = int(share * full * len(recording.points))
                content["regrets"][key] = simulate(recording, make, budget, repetitions)
                write_atomically(path, json.dumps(content) + "\n")
                print(f"{key}: {np.mean(content['regrets'][key]):.2f}")


def results_of(content: Mapping[str, Any]) -> Results:
    """Return the regrets by (recording, search, share of the full grid)."""
    split = {tuple(key.rsplit("/", 2)): values for key, values in content["regrets"].items()}
    return {(run, name, float(share)): np.array(values) for (run, name, share), values in split.items()}


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def bar(recording: Recording, results: Results) -> str:
    """Return the share of episodes with which each search equals the full grid."""
    grid = results[recording.name, "grid", 1.0]
    met = []
    for name in searches(recording):
        excess = {share: results[recording.name, name, share] - grid for share in shares(name)}
        level = [share for share, gaps in excess.items() if gaps.mean() <= standard_error(gaps)]
        met += [f"{name} ({100 * min(level):g} %)"] if level else []
    return f"- {recording.name}: {grid.mean():.2f} ± {standard_error(grid):.2f}; {', '.join(met) or 'none'}."


def table(recordings: Sequence[Recording], results: Results) -> list[str]:
    """Return mean regrets with their standard errors as Markdown."""
    runs = [recording.name for recording in recordings]
    names = dict.fromkeys(name for _, name, _ in results)
    lines = [f"| search | share | {' | '.join(runs)} | mean |", f"|---|---|{'---|' * (len(runs) + 1)}"]
    for name in names:
        for share in (0.0, *SHARES, 1.0):
            cells = [results.get((run, name, share)) for run in runs]
            if not any(cell is not None for cell in cells):
                continue
            texts = ["" if c is None else f"{c.mean():.2f} ± {standard_error(c):.2f}" for c in cells]
            mean = np.mean([cell.mean() for cell in cells if cell is not None])
            lines.append(f"| {name} | {100 * share:g} % | {' | '.join(texts)} | {mean:.2f} |")
    return lines


def draw(recordings: Sequence[Recording], results: Results) -> Figure:
    """Draw mean regret over episodes, a panel for each recording."""
    figure = Figure(figsize=(4.5 * len(recordings), 4), layout="constrained", dpi=150)
    for axes, recording in zip(figure.subplots(1, len(recordings), squeeze=False)[0], recordings, strict=True):
        bar = results[recording.name, "grid", 1.0].mean()
        axes.axhline(bar, color="black", linestyle="--", label="the full grid")
        for name in searches(recording):
            regrets = [results[recording.name, name, share] for share in shares(name)]
            errors = [standard_error(regret) for regret in regrets]
            spent = [100 * share for share in shares(name)]
            axes.errorbar(spent, [regret.mean() for regret in regrets], errors, marker="o", capsize=3, label=name)
        axes.set(title=recording.name, xlabel="episodes, % of the full grid", ylabel="mean regret, points of success")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def lines_of(recordings: Sequence[Recording], content: Mapping[str, Any]) -> list[str]:
    """Return the results as Markdown."""
    results, settings = results_of(content), content["settings"]
    lines = [
        f"{settings['repetitions']} repetitions; the full grid (100 %) has {settings['full']} episodes for each weight.",
        "",
        *table(recordings, results),
        "",
        "The regret of the full grid, and the searches that reach it (within the standard error of the paired difference) with the",
        "share of its episodes that they need:",
        "",
        *(bar(recording, results) for recording in recordings),
        "",
        "The predictions of the demonstrations:",
        "",
    ]
    for recording in recordings:
        weights, seeds = recording.success.shape
        text = "no demonstrations"
        if recording.prior:
            errors = [recording.prior.predicted(point) for point in recording.points]
            text = f"rank correlation {stats.spearmanr(errors, recording.rate).statistic:+.2f} (Spearman)"
        lines.append(f"- {recording.name}, {weights} weights, {seeds} recorded seeds: {text}.")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="STUDY.json of docs/results/evidence")
    parser.add_argument("--runs", nargs="+", default=[], help="of the study; all by default")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--full", type=int, default=100, help="episodes for each weight of the full grid, the bar")
    parser.add_argument("--out", type=Path, required=True, help="the regrets, JSON")
    args = parser.parse_args(argv)
    try:
        study(recordings_of(Evidence(args.study), args.runs), args.full, args.repetitions, args.out)
    except GpcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
