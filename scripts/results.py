"""Search the weights of every pair of bundled PushT policies, and of one with a checkpoint that LeRobot trained; write
docs/results/pusht.md from the run folders.

    python scripts/results.py --data FOLDER

FOLDER holds the demonstrations, for the denoising errors on the held-out episodes. Interrupt it at will: the same command
goes on. The parents' figures also go into the policies' cards. About 40 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train import HELD_OUT, load_demonstrations, windows

import gpc
from gpc.cli import main as command
from gpc.composition import compose
from gpc.config import load_config
from gpc.control import Sampling
from gpc.policies.bundled import BUNDLED, CARD
from gpc.record import read_json, write_atomically
from gpc.stats import mean_interval

ROOT = Path(__file__).parents[1]
POLICIES = ("pusht-diffusion", "pusht-flow", "pusht-beso", "pusht-image")
OUTSIDE = {"lerobot-pusht": f"lerobot:{ROOT / 'tests/data/lerobot-pusht'}"}  # by scripts/train_lerobot.py
WHAT = {"lerobot-pusht": "LeRobot's diffusion policy, trained here by `lerobot-train`; agent position and keypoints"}
PROTOCOL = ["env=pusht", "search=grid", "search.episodes=50", "report.episodes=200", "video=0"]
FEW_STEPS = (3, 4, 5)
SIGMAS = (0.02, 0.05, 0.1, 0.3, 1.0, 3.0, 10.0)
MEASURED = (
    "n_episodes", "seeds", "n_success", "pc_success", "pc_success_ci95", "avg_max_reward", "avg_max_reward_ci95",
)  # fmt: skip


def run_pair(a: str, b: str, runs: Path) -> dict[str, Any]:
    """The summary of one pair's search; a finished one is only read."""
    folder, sources = runs / f"{short(a)}-{short(b)}", [OUTSIDE.get(name, name) for name in (a, b)]
    if command(["search", *PROTOCOL, f"policies=[{','.join(sources)}]", f"run_dir={folder}"]) != 0:
        raise SystemExit(1)
    return read_json(folder / "summary.json") | {"folder": folder}


def run_few_steps(steps: int, runs: Path) -> dict[str, Any]:
    """The summary of pusht-beso alone, sampled in a few steps on the report seeds."""
    folder, seed = runs / f"beso-{steps}-steps", load_config("search", [*PROTOCOL, "policies=[a,b]"]).report.seed
    protocol = [
        "env=pusht",
        "policies=[pusht-beso]",
        "episodes=200",
        f"seed={seed}",
        f"sampler.steps={steps}",
        "video=0",
    ]
    if command(["evaluate", *protocol, f"run_dir={folder}"]) != 0:
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


def write_cards(parents: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the measured figures into the cards."""
    sampler = Sampling()
    for name in POLICIES:
        figures, path = parents[name], BUNDLED / name / CARD
        card = json.loads(path.read_text())
        card["measured"] = {"env": "pusht", "sampler": f"{sampler.method}, {sampler.steps} steps", **figures}
        write_atomically(path, json.dumps(card, indent=1) + "\n")


def denoising_errors(data: Path) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """On windows of the held-out episodes: RMS error (policy, sigma) in pixels, and each pair's correlation (sigma,).

    The same noise for all; sigma in units of the normalised action (256 pixels).
    """
    policies = [gpc.load_policy(name) for name in POLICIES]
    everyone = compose(policies, [1 / len(policies)] * len(policies))
    observations, actions, ends = load_demonstrations(data, list(everyone.observations.shapes))
    observed, acted = windows(ends, HELD_OUT, 16, 2)
    pick = torch.randperm(len(observed), generator=torch.Generator().manual_seed(0))[:512]
    batch = {key: value[observed[pick]] for key, value in observations.items()}
    clean = everyone.actions.encode(actions[acted[pick]].double())
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rms, correlation = np.zeros((len(POLICIES), len(SIGMAS))), {}
    errors = []
    for member in everyone.members:
        denoiser = member.policy.condition({key: batch[key] for key in member.policy.observations.shapes})
        errors.append([])
        for wanted in SIGMAS:
            sigma = torch.tensor(everyone.levels.snap(wanted), dtype=torch.float64)
            errors[-1].append((member.denoise(denoiser, clean + sigma * noise, sigma) - clean).flatten())
    for i, own in enumerate(errors):
        rms[i] = [256 * float(e.square().mean().sqrt()) for e in own]
    for i, j in combinations(range(len(POLICIES)), 2):
        pairs = zip(errors[i], errors[j], strict=True)
        correlation[POLICIES[i], POLICIES[j]] = np.array(
            [float((a * b).mean() / (a.norm() * b.norm()) * len(a)) for a, b in pairs]
        )
    return rms, correlation


def least_error(a: np.ndarray, b: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """RMS error of the best convex mixture over the better parent's, from both errors and their correlation."""
    g11, g22, g12 = a**2, b**2, correlation * a * b
    w = np.clip((g22 - g12) / (g11 + g22 - 2 * g12), 0, 1)
    return np.sqrt(w**2 * g11 + 2 * w * (1 - w) * g12 + (1 - w) ** 2 * g22) / np.minimum(a, b)


def percent(figures: Mapping[str, Any]) -> str:
    low, high = figures["pc_success_ci95"]
    return f"{figures['pc_success']:.1f} [{low:.1f}, {high:.1f}]"


def reward(figures: Mapping[str, Any]) -> str:
    low, high = figures["avg_max_reward_ci95"]
    return f"{figures['avg_max_reward']:.3f} [{low:.3f}, {high:.3f}]"


def short(name: str) -> str:
    return name.removeprefix("pusht-")


def page(
    summaries: Sequence[Mapping[str, Any]], few: Mapping[int, Any], parents: Mapping[str, Any], data: Path, out: Path
) -> list[str]:
    """The Markdown lines."""
    config = load_config("search", [*PROTOCOL, "policies=[a,b]"])
    search, report, sampler = config.search, config.report, config.sampler
    lines = [
        "# PushT: every pair of the bundled policies, and one with a LeRobot checkpoint",
        "",
        "Written by `scripts/results.py` from the run folders named below (rows, manifest and summary are in the repository).",
        f"For each pair: 11 weights on search seeds {search.seed} to {search.seed + search.episodes - 1}; then the winner and both",
        f"parents on report seeds {report.seed} to {report.seed + report.episodes - 1}, which chose nothing. Episodes have at most",
        "300 steps; success is a coverage of 0.95, score the largest coverage / 0.95. Sampler:",
        f"{sampler.method}, {sampler.steps} steps. Brackets are 95 % intervals (Wilson for success, Student's t for scores).",
        "",
        "## The parents, on the report seeds",
        "",
        "| policy | what it is | episodes | success % | score |",
        "|---|---|---|---|---|",
    ]
    for name, figures in parents.items():
        what = WHAT.get(name) or json.loads((BUNDLED / name / CARD).read_text())["summary"]
        lines.append(f"| {name} | {what} | {figures['n_episodes']} | {percent(figures)} | {reward(figures)} |")
    lines += _few_steps(few, out) + _winners(summaries) + _errors(data) + ["", "## The curves", ""]
    for s in summaries:
        where = s["folder"].relative_to(out.parent)
        lines += [f"`{s['folder'].relative_to(ROOT)}`", "", f"![{' + '.join(s['policies'])}]({where}/curve.png)", ""]
    return lines


def _few_steps(few: Mapping[int, Mapping[str, Any]], out: Path) -> list[str]:
    lines = [
        "",
        "pusht-beso in fewer steps, on the same seeds:",
        "",
        "| steps | success % | score | run |",
        "|---|---|---|---|",
    ]
    for steps, summary in few.items():
        where = summary["folder"].relative_to(ROOT)
        lines.append(f"| {steps} | {percent(summary)} | {reward(summary)} | `{where}` |")
    return lines


def _winners(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Winner against best parent, on the report seeds",
        "",
        "| pair | winner | success % | best parent | success % | gain, points | p (McNemar) | score gain | p (paired t) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        pair, mixture = " + ".join(map(short, s["policies"])), ", ".join(f"{w:g}" for w in s["winner"]["weights"])
        best = next(parent for parent in s["parents"] if parent["name"] == s["best_parent"])
        low, high = s["avg_max_reward_gain_ci95"]
        lines.append(
            f"| {pair} | {mixture} | {percent(s['winner'])} | {short(best['name'])} | {percent(best)} "
            f"| {s['pc_success_gain']:+.1f} | {s['p_value']:.2g} | {s['avg_max_reward_gain']:+.3f} [{low:+.3f}, {high:+.3f}] "
            f"| {s['p_value_score']:.2g} |"
        )
    gained = [s for s in summaries if s["p_value"] < 0.05 and s["pc_success_gain"] > 0]
    strict = [s for s in gained if s["p_value"] < 0.05 / len(summaries)]
    optimism = [_looked(s) - s["winner"]["pc_success"] for s in summaries]
    low, high = mean_interval(optimism)
    return [
        *lines,
        "",
        f"{len(gained)} of {len(summaries)} winners beat their best parent on success with p < 0.05; {len(strict)} with",
        f"p < 0.05 / {len(summaries)}, which allows for {len(summaries)} tests. On its search seeds the best of a curve looked",
        f"{np.mean(optimism):+.1f} points [{low:+.1f}, {high:+.1f}] better than on fresh ones.",
        "",
        *(f"- {' + '.join(map(short, s['policies']))}: {s['verdict']}" for s in summaries),
    ]


def _looked(summary: Mapping[str, Any]) -> float:
    winner = summary["winner"]["weights"]
    return next(float(c["pc_success"]) for c in summary["candidates"] if c["weights"] == winner)


def _errors(data: Path) -> list[str]:
    rms, correlation = denoising_errors(data)
    head = " | ".join(f"{s:g}" for s in SIGMAS)
    lines = [
        "",
        "## One-step denoising errors on the 16 held-out demonstrations",
        "",
        "RMS distance, in pixels, of `denoised(x0 + sigma noise)` from the demonstrated chunk x0, by sigma (in units of the",
        "normalised action, 256 pixels); below it the correlation of two policies' errors. At large sigma nobody can know",
        "which of several good chunks was demonstrated, and all policies make the same error; composition has room where the",
        "errors are alike in size and little correlated.",
        "",
        f"| policy | {head} |",
        f"|---|{'---|' * len(SIGMAS)}",
    ]
    lines += [f"| {name} | {' | '.join(f'{v:.2f}' for v in own)} |" for name, own in zip(POLICIES, rms, strict=True)]
    lines += ["", f"| correlation | {head} |", f"|---|{'---|' * len(SIGMAS)}"]
    lines += [f"| {short(a)}, {short(b)} | {' | '.join(f'{v:.2f}' for v in c)} |" for (a, b), c in correlation.items()]
    lines += [
        "",
        "What the best convex weight of each level could gain in one step (arXiv 2510.01068, proposition 1, from these errors):",
        "its RMS error divided by the better parent's. 1.00 is no gain.",
        "",
        f"| pair | {head} |",
        f"|---|{'---|' * len(SIGMAS)}",
    ]
    gains: list[float] = []
    for (a, b), c in correlation.items():
        least = least_error(rms[POLICIES.index(a)], rms[POLICIES.index(b)], c)
        lines.append(f"| {short(a)}, {short(b)} | {' | '.join(f'{v:.2f}' for v in least)} |")
        gains += [100 * (1 - float(v)) for v, sigma in zip(least, SIGMAS, strict=True) if 0.05 <= sigma <= 1]
    return [
        *lines,
        "",
        f"Where a chunk is decided (sigma 0.05 to 1) the best mixture lowers the one-step error by {min(gains):.0f} to",
        f"{max(gains):.0f} %, {np.median(gains):.0f} % in the median: the policies learned the same demonstrations and make",
        "much the same errors. An interval of 200 episodes is 14 points wide; a gain must be nearly as large to be shown.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/pusht.md")
    args = parser.parse_args()
    out = args.out.resolve()
    pairs = [*combinations(POLICIES, 2), *((name, "pusht-flow") for name in OUTSIDE)]
    summaries = [run_pair(a, b, out.parent / "runs") for a, b in pairs]
    few = {steps: run_few_steps(steps, out.parent / "runs") for steps in FEW_STEPS}
    parents = parents_of(summaries)
    write_cards(parents)
    write_atomically(out, "\n".join(page(summaries, few, parents, args.data, out)) + "\n")


if __name__ == "__main__":
    main()
