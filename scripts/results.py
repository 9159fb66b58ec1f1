"""Search the weights of every pair of bundled PushT policies, and of one with a checkpoint that LeRobot trained; write
docs/results/pusht.md from the run folders.

    python scripts/results.py --data FOLDER

FOLDER holds the demonstrations, for the denoising errors on the held-out episodes. Interrupt it at will: the same command
goes on. The parents' figures also go into the policies' cards. About 40 minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from recipes import HELD_OUT, load_pusht
from tables import ROOT, curves, parents_of, parents_table, percent, reward, run, short, winners, write_cards

import gpc
from gpc.commands.config import load_config
from gpc.composition.composed import compose
from gpc.disk import write_atomically
from gpc.inference.settings import Sampling
from gpc.weights.denoising_error import DenoisingError, least_error_weights, measure

POLICIES = ("pusht-diffusion", "pusht-flow", "pusht-beso", "pusht-image")
OUTSIDE = {"lerobot-pusht": f"lerobot:{ROOT / 'tests/data/lerobot-pusht'}"}  # by scripts/train_lerobot.py
WHAT = {"lerobot-pusht": "LeRobot's diffusion policy, trained here by `lerobot-train`; agent position and keypoints"}
PROTOCOL = ["env=pusht", "search=grid", "search.episodes=50", "report.episodes=200"]
FEW_STEPS = (3, 4, 5)


def denoising_errors(data: Path) -> DenoisingError:
    """Of all bundled policies on windows of the held-out episodes."""
    policies = [gpc.load_policy(name) for name in POLICIES]
    everyone = compose(policies, [1 / len(policies)] * len(policies))
    found = load_pusht(data, list(everyone.observations.shapes))
    return measure(everyone, Sampling(), found.select(HELD_OUT))


def least_error(errors: DenoisingError, pair: Sequence[int]) -> np.ndarray:
    """RMS error of the best convex mixture of two policies over the better one's, (levels,)."""
    found = []
    for gram in errors.gram[:, pair][:, :, pair]:
        weights = np.array(least_error_weights(gram))
        found.append(np.sqrt(weights @ gram @ weights / gram.diagonal().min()))
    return np.array(found)


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
        *parents_table(parents, WHAT),
        *_few_steps(few),
        "",
        "## Winner against best parent, on the report seeds",
        "",
        *winners(summaries),
        *_errors(data),
        "",
        "## The curves",
        "",
    ]
    return lines + curves(summaries, out)


def _few_steps(few: Mapping[int, Mapping[str, Any]]) -> list[str]:
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


def _errors(data: Path) -> list[str]:
    errors = denoising_errors(data)
    head = " | ".join(f"{s:.2g}" for s in errors.sigmas)
    rule = f"|---|{'---|' * len(errors.sigmas)}"
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
        rule,
    ]
    lines += [_line(name, 256 * np.sqrt(own)) for name, own in zip(POLICIES, errors.squares.T, strict=True)]
    pairs = {f"{short(POLICIES[i])}, {short(POLICIES[j])}": [i, j] for i, j in combinations(range(len(POLICIES)), 2)}
    lines += ["", f"| correlation | {head} |", rule]
    lines += [_line(name, errors.correlation[:, i, j]) for name, (i, j) in pairs.items()]
    lines += [
        "",
        "What the best convex weight of each level could gain in one step (arXiv 2510.01068, proposition 1, from these errors):",
        "its RMS error divided by the better parent's. 1.00 is no gain.",
        "",
        f"| pair | {head} |",
        rule,
    ]
    room = {name: least_error(errors, pair) for name, pair in pairs.items()}
    lines += [_line(name, own) for name, own in room.items()]
    decided = (errors.sigmas >= 0.05) & (errors.sigmas <= 1)
    gains = 100 * (1 - np.concatenate([own[decided] for own in room.values()]))
    return [
        *lines,
        "",
        f"Where a chunk is decided (sigma 0.05 to 1) the best mixture lowers the one-step error by {gains.min():.0f} to",
        f"{gains.max():.0f} %, {np.median(gains):.0f} % in the median: the policies learned the same demonstrations and make",
        "much the same errors. An interval of 200 episodes is 14 points wide; a gain must be nearly as large to be shown.",
    ]


def _line(name: str, values: np.ndarray) -> str:
    return f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/pusht.md")
    args = parser.parse_args()
    out = args.out.resolve()
    runs, report = out.parent / "runs", load_config("search", [*PROTOCOL, "policies=[a,b]"]).report
    pairs = [*combinations(POLICIES, 2), *((name, "pusht-flow") for name in OUTSIDE)]
    summaries = [
        run("search", runs / f"{short(a)}-{short(b)}", [OUTSIDE.get(name, name) for name in (a, b)], *PROTOCOL)
        for a, b in pairs
    ]
    alone = ["env=pusht", f"episodes={report.episodes}", f"seed={report.seed}"]
    few = {
        steps: run("evaluate", runs / f"beso-{steps}-steps", ["pusht-beso"], *alone, f"sampler.steps={steps}")
        for steps in FEW_STEPS
    }
    parents = parents_of(summaries)
    write_cards(parents, "pusht")
    write_atomically(out, "\n".join(page(summaries, few, parents, args.data, out)) + "\n")


if __name__ == "__main__":
    main()
