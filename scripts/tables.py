"""What the pages under docs/results have in common: running what they report, and their tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpc.commands.cli import main as command
from gpc.disk import write_atomically
from gpc.inference.settings import Sampling
from gpc.policies.bundled import BUNDLED, CARD
from gpc.results.run_folder import read_json
from gpc.results.stats import mean_interval

ROOT = Path(__file__).parents[1]
MEASURED = (
    "n_episodes", "seeds", "n_success", "pc_success", "pc_success_ci95", "avg_max_reward", "avg_max_reward_ci95",
)  # fmt: skip


def run(kind: str, folder: Path, sources: Sequence[str], *keys: str) -> dict[str, Any]:
    """The summary of `gpc evaluate` or `gpc search` with these keys; a finished run is only read."""
    if command([kind, *keys, f"policies=[{','.join(sources)}]", f"run_dir={folder}", "video=0"]) != 0:
        raise SystemExit(1)
    return read_json(folder / "summary.json") | {"folder": folder}


def parents_of(summaries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every policy's figures on the report seeds. A policy is a parent in several pairs, with the same result in each."""
    found: dict[str, dict[str, Any]] = {}
    for summary in summaries:
        for parent in summary["parents"]:
            figures = {key: parent[key] for key in MEASURED}
            if found.setdefault(parent["name"], figures) != figures:
                raise SystemExit(f"{parent['name']} differs between its pairs: {summary['folder']}")
    return found


def write_cards(parents: Mapping[str, Mapping[str, Any]], env: str) -> None:
    """Put the measured figures into the cards of the bundled policies."""
    sampler = Sampling()
    for name, figures in parents.items():
        path = BUNDLED / name / CARD
        if path.exists():
            card = json.loads(path.read_text())
            card["measured"] = {"env": env, "sampler": f"{sampler.method}, {sampler.steps} steps", **figures}
            write_atomically(path, json.dumps(card, indent=1) + "\n")


def percent(figures: Mapping[str, Any]) -> str:
    low, high = figures["pc_success_ci95"]
    return f"{figures['pc_success']:.1f} [{low:.1f}, {high:.1f}]"


def reward(figures: Mapping[str, Any]) -> str:
    low, high = figures["avg_max_reward_ci95"]
    return f"{figures['avg_max_reward']:.3f} [{low:.3f}, {high:.3f}]"


def short(name: str) -> str:
    """Without the task that a bundled name begins with."""
    return name.partition("-")[2] if (BUNDLED / name).exists() else name


def summary_of(name: str) -> str:
    """What a bundled policy is, as its card says."""
    return str(json.loads((BUNDLED / name / CARD).read_text())["summary"])


def parents_table(parents: Mapping[str, Mapping[str, Any]], what: Mapping[str, str]) -> list[str]:
    """The parents on the report seeds; `what` describes those that are not bundled."""
    lines = ["| policy | what it is | episodes | success % | score |", "|---|---|---|---|---|"]
    for name, figures in parents.items():
        said = what.get(name) or summary_of(name)
        lines.append(f"| {name} | {said} | {figures['n_episodes']} | {percent(figures)} | {reward(figures)} |")
    return lines


def best_parent(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The figures of the pair's better parent on the report seeds."""
    found: Mapping[str, Any] = next(p for p in summary["parents"] if p["name"] == summary["best_parent"])
    return found


def winners(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Winner against best parent, pair by pair, and what they come to."""
    lines = [
        "| pair | winner | success % | best parent | success % | gain, points | p (McNemar) | score gain | p (paired t) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        pair, mixture = " + ".join(map(short, s["policies"])), ", ".join(f"{w:g}" for w in s["winner"]["weights"])
        best, (low, high) = best_parent(s), s["avg_max_reward_gain_ci95"]
        lines.append(
            f"| {pair} | {mixture} | {percent(s['winner'])} | {short(best['name'])} | {percent(best)} "
            f"| {s['pc_success_gain']:+.1f} | {s['p_value']:.2g} | {s['avg_max_reward_gain']:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"| {s['p_value_score']:.2g} |"
        )
    gained = [s for s in summaries if s["p_value"] < 0.05 and s["pc_success_gain"] > 0]
    strict = [s for s in gained if s["p_value"] < 0.05 / len(summaries)]
    optimism = [_looked(s) - s["winner"]["pc_success"] for s in summaries]
    low, high = mean_interval(optimism)
    interval = f" [{low:+.1f}, {high:+.1f}]" if len(optimism) > 1 else ""
    return [
        *lines,
        "",
        f"{len(gained)} of {len(summaries)} winners beat their best parent on success with p < 0.05; {len(strict)} with",
        f"p < 0.05 / {len(summaries)}, which allows for {len(summaries)} tests. On its search seeds the best of a curve looked",
        f"{np.mean(optimism):+.1f} points{interval} better than on fresh ones.",
        "",
        *(f"- {' + '.join(map(short, s['policies']))}: {s['verdict']}" for s in summaries),
    ]


def _looked(summary: Mapping[str, Any]) -> float:
    winner = summary["winner"]["weights"]
    return next(float(c["pc_success"]) for c in summary["candidates"] if c["weights"] == winner)


def curves(summaries: Sequence[Mapping[str, Any]], page: Path) -> list[str]:
    """Each pair's curve, as a picture."""
    lines = []
    for s in summaries:
        where = s["folder"].relative_to(page.parent)
        lines += [f"`{s['folder'].relative_to(ROOT)}`", "", f"![{' + '.join(s['policies'])}]({where}/curve.png)", ""]
    return lines
