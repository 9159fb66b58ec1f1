"""How far from the best weights does each search end, and for how many episodes? Simulated on recorded grids.

    python scripts/search_study.py RUN [RUN ...] --out docs/results/search-study

Each RUN is a finished `gpc search ... search=grid` with many episodes for each weight. In a repetition its seeds are drawn with
replacement, the same for every search, and the searches roll out recorded episodes; weights are multiples of the grid's step, so
that every proposal has been recorded. The regret is the best weight's rate of success, over all recorded seeds, less that of
the weight found. Where a run was given `search.demonstrations`, what they predicted is the start of "racing + demos" and
the whole of "demos". Writes OUT.md, OUT.png and OUT.json; interrupt it at will, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from gpc.disk import write_atomically
from gpc.errors import GpcError, InputError
from gpc.results.run_folder import read_json, read_rows
from gpc.weights.bayesian import SAMPLERS, Bayesian
from gpc.weights.searches import FromDemonstrations, Grid, Outcome, Prior, Racing, Random, Search
from gpc.weights.simplex import Weights, simplex

SHARES = (0.1, 0.2, 0.4)
EPISODES = 10  # of each proposal
APART = 1_000_000  # between the seeds of two repetitions, whose proposals differ
Results = dict[tuple[str, str, float], np.ndarray]


@dataclass(frozen=True)
class Predictions:
    """What a summary's denoising errors say of the weights of its grid."""

    errors: Mapping[Weights, float]
    weights: Weights

    def predicted(self, weights: Weights) -> float:
        return self.errors[weights]

    def best(self) -> Weights:
        return self.weights


@dataclass(frozen=True)
class Recording:
    """A recorded grid: outcomes (weights, seeds) under every point of the simplex."""

    name: str
    step: float
    points: list[Weights]
    success: np.ndarray
    score: np.ndarray
    prior: Prior | None

    @property
    def rate(self) -> np.ndarray:
        """Success of every point over all seeds, taken for the truth."""
        return self.success.mean(1)

    def regret(self, search: Search, seeds: np.ndarray) -> float:
        """Play a search on these recorded seeds; what it ends short of the best, in points of success."""
        while asked := search.ask():
            told = {}
            for candidate, seed in asked:
                at = self.points.index(search.candidates[candidate]), seeds[seed - search.seeds.start]
                told[candidate, seed] = Outcome(bool(self.success[at]), float(self.score[at]))
            search.tell(told)
        return 100 * float(self.rate.max() - self.rate[self.points.index(search.candidates[search.best()])])


def record(path: Path) -> Recording:
    """Read a run folder; InputError where it is not a whole grid."""
    config = read_json(path / "manifest.json")["config"]
    points = simplex(len(config["policies"]), config["search"].get("step", 0))
    rows = [row for row in read_rows(path / "episodes.jsonl") if row.phase == "search"]
    seeds = {seed: i for i, seed in enumerate(sorted({row.seed for row in rows}))}
    if len(rows) != len(points) * len(seeds) or {row.weights for row in rows} != set(points):
        raise InputError(f"{path} is no finished search=grid: {len(rows)} episodes of {len(points)} weights")
    place = {weights: i for i, weights in enumerate(points)}
    success, score = np.zeros((2, len(points), len(seeds)))
    for row in rows:
        success[place[row.weights], seeds[row.seed]] = row.success
        score[place[row.weights], seeds[row.seed]] = row.score
    return Recording(path.name, config["search"]["step"], points, success, score, _prior(path))


def _prior(path: Path) -> Prior | None:
    errors = read_json(path / "summary.json").get("denoising_error")
    if errors is None:
        return None
    return Predictions({tuple(p["weights"]): p["error"] for p in errors["predicted"]}, tuple(errors["weights"]))


def searches(recording: Recording) -> dict[str, Callable[[int, int], Search]]:
    """Every search, made of a budget and a seed."""
    policies, step, prior = len(recording.points[0]), recording.step, recording.prior

    def grid(budget: int, seed: int) -> Search:
        return Grid(policies=policies, step=step, seed=seed, episodes=budget // len(recording.points))

    def racing(budget: int, seed: int, prior: Prior | None = None) -> Search:
        return Racing(policies=policies, step=step, seed=seed, budget=budget, prior=prior)

    def random(budget: int, seed: int) -> Search:
        return Random(policies=policies, step=step, seed=seed, budget=budget, episodes=EPISODES)

    def bayesian(sampler: str, budget: int, seed: int) -> Search:
        return Bayesian(policies=policies, step=step, seed=seed, budget=budget, episodes=EPISODES, sampler=sampler)

    found = {"grid": grid, "racing": racing, "random": random} | {s: partial(bayesian, s) for s in SAMPLERS}
    if prior:
        found["racing + demos"] = partial(racing, prior=prior)
        found["demos"] = lambda budget, seed: FromDemonstrations(policies=policies, step=step, seed=seed, prior=prior)
    return found


def shares(search: str) -> tuple[float, ...]:
    """Of the whole grid's episodes; `demos` rolls out nothing."""
    return (0.0,) if search == "demos" else SHARES


def simulate(recording: Recording, make: Callable[[int, int], Search], budget: int, repetitions: int) -> list[float]:
    """The regret of every repetition."""
    regrets = []
    for repetition in range(repetitions):
        drawn = np.random.default_rng(repetition).integers(0, recording.success.shape[1], budget)
        regrets.append(recording.regret(make(budget, APART * repetition), drawn))
    return regrets


def study(recordings: Sequence[Recording], full: int, repetitions: int, path: Path) -> Results:
    """Regrets by (recording, search, share of the full grid); what the JSON file holds already is not simulated again."""
    asked = {"full": full, "repetitions": repetitions, "runs": [recording.name for recording in recordings]}
    kept = read_json(path) if path.exists() else {"asked": asked, "regrets": {}}
    if kept["asked"] != asked:
        raise InputError(f"{path} was begun with {kept['asked']}; use another --out")
    for recording in recordings:
        plans = [(name, make, share) for name, make in searches(recording).items() for share in shares(name)]
        for name, make, share in [*plans, ("grid", searches(recording)["grid"], 1.0)]:
            key = f"{recording.name}/{name}/{share:g}"
            if key not in kept["regrets"]:
                budget = int(share * full * len(recording.points))
                kept["regrets"][key] = simulate(recording, make, budget, repetitions)
                write_atomically(path, json.dumps(kept) + "\n")
                print(f"{key}: {np.mean(kept['regrets'][key]):.2f}")
    split = {tuple(key.rsplit("/", 2)): values for key, values in kept["regrets"].items()}
    return {(run, name, float(share)): np.array(values) for (run, name, share), values in split.items()}


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def bar(recording: Recording, results: Results) -> str:
    """The share of its episodes with which each search comes down to the whole grid's regret."""
    whole = results[recording.name, "grid", 1.0]
    met = []
    for name in searches(recording):
        excess = {share: results[recording.name, name, share] - whole for share in shares(name)}
        level = [share for share, gaps in excess.items() if gaps.mean() <= standard_error(gaps)]
        met += [f"{name} ({100 * min(level):g} %)"] if level else []
    return f"- {recording.name}: {whole.mean():.2f} ± {standard_error(whole):.2f}; {', '.join(met) or 'none'}."


def table(recordings: Sequence[Recording], results: Results) -> list[str]:
    """Mean regrets with their standard errors, in Markdown; the bar is the whole grid's."""
    runs = [recording.name for recording in recordings]
    names = dict.fromkeys(name for _, name, _ in results)
    lines = [f"| search | share | {' | '.join(runs)} | mean |", f"|---|---|{'---|' * (len(runs) + 1)}"]
    for name in names:
        for share in (0.0, *SHARES, 1.0):
            cells = [results.get((run, name, share)) for run in runs]
            if not any(cell is not None for cell in cells):
                continue
            shown = ["" if c is None else f"{c.mean():.2f} ± {standard_error(c):.2f}" for c in cells]
            mean = np.mean([cell.mean() for cell in cells if cell is not None])
            lines.append(f"| {name} | {100 * share:g} % | {' | '.join(shown)} | {mean:.2f} |")
    return lines


def draw(recordings: Sequence[Recording], results: Results, path: Path) -> None:
    """Mean regret against episodes, a panel for each recording; the whole grid as a dashed line."""
    figure = Figure(figsize=(4.5 * len(recordings), 4), layout="constrained", dpi=150)
    for axes, recording in zip(figure.subplots(1, len(recordings), squeeze=False)[0], recordings, strict=True):
        bar = results[recording.name, "grid", 1.0].mean()
        axes.axhline(bar, color="black", linestyle="--", label="the whole grid")
        for name in searches(recording):
            found = [results[recording.name, name, share] for share in shares(name)]
            errors = [standard_error(regret) for regret in found]
            spent = [100 * share for share in shares(name)]
            axes.errorbar(spent, [r.mean() for r in found], errors, marker="o", capsize=3, label=name)
        axes.set(title=recording.name, xlabel="episodes, % of the whole grid", ylabel="mean regret, points of success")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path)


def page(recordings: Sequence[Recording], results: Results, full: int, repetitions: int) -> list[str]:
    """The Markdown lines."""
    lines = [
        "# Searches on recorded grids",
        "",
        f"Written by `scripts/search_study.py`: mean regret in points of success (± standard error), {repetitions} repetitions. A",
        f"share of 100 % is the grid with {full} episodes for each weight, the bar. Seeds are drawn with replacement from the",
        "recorded ones. The truth is the rate of success over all of them: the recordings' own noise counts as signal, and the",
        "regrets are those in a world as rugged as the recording.",
        "",
        *table(recordings, results),
        "",
        "The whole grid's regret, and who comes down to it (within the standard error of the paired difference) with what share of",
        "its episodes:",
        "",
        *(bar(recording, results) for recording in recordings),
        "",
        "What the demonstrations predict:",
        "",
    ]
    for recording in recordings:
        errors = [] if recording.prior is None else [recording.prior.predicted(point) for point in recording.points]
        said = (
            f"rank correlation {stats.spearmanr(errors, recording.rate).statistic:+.2f} (Spearman)"
            if errors
            else "none given"
        )
        weights, seeds = recording.success.shape
        lines.append(f"- {recording.name}, {weights} weights, {seeds} recorded seeds: {said}.")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--full", type=int, default=100, help="episodes for each weight of the whole grid, the bar")
    parser.add_argument("--out", type=Path, required=True, help="OUT.md, OUT.png and OUT.json")
    args = parser.parse_args(argv)
    try:
        recordings = [record(path) for path in args.runs]
        results = study(recordings, args.full, args.repetitions, args.out.with_suffix(".json"))
    except GpcError as error:
        raise SystemExit(str(error)) from None
    draw(recordings, results, args.out.with_suffix(".png"))
    lines = [*page(recordings, results, args.full, args.repetitions), "", f"![mean regret]({args.out.name}.png)"]
    write_atomically(args.out.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
