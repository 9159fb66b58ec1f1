"""robomimic checkpoints in robomimic's own rollouts and in gpc: `python scripts/against_robomimic.py [PATH.pth ...]`.

Both draw the same initial states from the same seeds, in the checkpoint's own simulator, and take its own sampler; the noise
differs. Without a path the bundled lift-diffusion is measured, and docs/results/against-robomimic.md is written, in about 10
minutes on two cores; `scripts/bench.py lift` measures which is faster.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from robomimic.scripts.run_trained_agent import rollout
from robomimic.utils import file_utils
from tables import ROOT

import gpc
from gpc.disk import write_atomically
from gpc.policies.bundled import BUNDLED
from gpc.policies.checkpoint import read
from gpc.policies.from_robomimic import size_of, unet
from gpc.results.stats import discordant, mcnemar, paired_difference, wilson
from gpc.rollout.gl import choose_gl

LIFT = BUNDLED / "lift-diffusion" / "lift-diffusion.pth"


def theirs(checkpoint: Path, seeds: range) -> tuple[float, list[dict[str, float]]]:
    """Return robomimic's seconds and its figures of each episode."""
    choose_gl()
    content = read(checkpoint)
    content["env_metadata"].pop("lang", None)  # robomimic would fetch a language model to embed it
    with contextlib.redirect_stdout(io.StringIO()), unet(**size_of(content["model"]["nets"])):
        policy, _ = file_utils.policy_from_checkpoint(ckpt_dict=content, device=torch.device("cpu"))
        env, _ = file_utils.env_from_checkpoint(ckpt_dict=content)
        config, _ = file_utils.config_from_checkpoint(ckpt_dict=content)
    begin, episodes = time.perf_counter(), []
    for seed in seeds:
        np.random.seed(seed)  # noqa: NPY002 (robosuite draws from it)
        torch.manual_seed(seed)
        stats, _ = rollout(policy, env, config.experiment.rollout.horizon)
        episodes.append(stats)
    return time.perf_counter() - begin, episodes


def ours(checkpoint: Path, seeds: range) -> list[bool]:
    """Return the successes of `gpc.evaluate` in the checkpoint's own simulator."""
    policy = gpc.load_policy(f"robomimic:{checkpoint}")
    result = gpc.evaluate(policy, "policy", episodes=len(seeds), seed=seeds[0], sampler="native")
    return [row.success for row in sorted(result.rows, key=lambda row: row.seed)]


def percent(successes: list[bool]) -> str:
    low, high = wilson(sum(successes), len(successes))
    return f"{100 * np.mean(successes):.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def page(outcomes: Mapping[str, tuple[list[bool], list[bool]]], seeds: range) -> list[str]:
    """Return the page; `outcomes` are robomimic's successes and ours by checkpoint."""
    lines = [
        "# The same checkpoint in robomimic and in gpc",
        "",
        "Written by `scripts/against_robomimic.py`: robomimic's own `rollout` (of `run_trained_agent`), one episode after another,",
        f"and `gpc evaluate env=policy` with weight one, on seeds {seeds[0]} to {seeds[-1]}. Both take all 100 DDPM steps for a",
        "chunk, from the same initial states, with other noise. Success in %, brackets are 95 % intervals (Wilson; for the paired",
        "difference Newcombe); p is McNemar's exact test. The rows are not in the repository: the script makes them and the page.",
        "",
        "| checkpoint | robomimic | gpc | only robomimic / only gpc | gpc - robomimic, points | p |",
        "|---|---|---|---|---|---|",
    ]
    for name, (a, b) in outcomes.items():
        low, high = paired_difference(b, a)
        only = " / ".join(map(str, discordant(a, b)))
        gain = f"{100 * (np.mean(b) - np.mean(a)):+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"
        lines.append(f"| {name} | {percent(a)} | {percent(b)} | {only} | {gain} | {mcnemar(a, b):.2g} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path, help="PATH.pth; by default the bundled lift-diffusion")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=300_000, help="first seed")
    args = parser.parse_args()
    seeds, outcomes = range(args.seed, args.seed + args.episodes), {}
    for checkpoint in args.checkpoints or [LIFT]:
        successes = [bool(episode["Success_Rate"]) for episode in theirs(checkpoint, seeds)[1]]
        outcomes[checkpoint.stem] = successes, ours(checkpoint, seeds)
        lines = page(outcomes, seeds)
        print(lines[-1], flush=True)
    if not args.checkpoints:
        write_atomically(ROOT / "docs/results/against-robomimic.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
