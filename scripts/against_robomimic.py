"""A robomimic checkpoint in robomimic's own rollouts and in gpc, on the same seeds: `python scripts/against_robomimic.py`.

Both draw the same initial states and run the checkpoint's own simulator; the noise and the number of steps differ. Writes
docs/results/against-robomimic.md. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path

import numpy as np
import torch
from robomimic.scripts.run_trained_agent import rollout
from robomimic.utils import file_utils
from tables import ROOT

import gpc
from gpc.gl import choose_gl
from gpc.policies.bundled import BUNDLED
from gpc.policies.checkpoint import read
from gpc.policies.from_robomimic import size_of, unet
from gpc.record import write_atomically
from gpc.stats import mcnemar, wilson

CHECKPOINTS = ("lift", "can", "square")
TRAINED_LEVELS = ["sampler=ancestral", "sampler.grid=trained", "sampler.steps=100"]


def theirs(checkpoint: Path, seeds: range) -> tuple[float, list[dict[str, float]]]:
    """(seconds, robomimic's figures of each episode) of its `rollout`, one episode after the other."""
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


def ours(checkpoint: Path, seeds: range) -> tuple[float, list[bool]]:
    """(seconds, successes) of `gpc.evaluate` in the simulator that the checkpoint names."""
    begin = time.perf_counter()
    policy = gpc.load_policy(f"robomimic:{checkpoint}")
    result = gpc.evaluate(policy, "policy", episodes=len(seeds), overrides=[f"seed={seeds[0]}", *TRAINED_LEVELS])
    return time.perf_counter() - begin, [row.success for row in sorted(result.rows, key=lambda row: row.seed)]


def percent(successes: list[bool]) -> str:
    low, high = wilson(sum(successes), len(successes))
    return f"{100 * np.mean(successes):.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=[t for t in CHECKPOINTS if (BUNDLED / f"{t}-diffusion").exists()])
    parser.add_argument("--episodes", type=int, default=50)
    args = parser.parse_args()
    seeds = range(300_000, 300_000 + args.episodes)
    lines = [
        "# The same checkpoint in robomimic and in gpc",
        "",
        "Written by `scripts/against_robomimic.py`: robomimic's own `rollout` (of `run_trained_agent`), one episode after another,",
        f"and `gpc evaluate env=policy` with weight one, on seeds {seeds[0]} to {seeds[-1]}. robomimic takes 100 DDPM steps for",
        "a chunk, gpc DDPM's steps on those of the trained levels that a Karras grid of 100 meets (39 here), so the speeds are of",
        "different work. The initial states are the same, the noise is not. Success, %, with Wilson's 95 % interval; p: McNemar's",
        "exact test.",
        "",
        "| checkpoint | robomimic | gpc | only robomimic / only gpc | p | episodes/minute, robomimic | gpc | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in args.tasks:
        checkpoint = BUNDLED / f"{task}-diffusion" / f"{task}-diffusion.pth"
        slow, episodes = theirs(checkpoint, seeds)
        a = [bool(episode["Success_Rate"]) for episode in episodes]
        fast, b = ours(checkpoint, seeds)
        only = f"{sum(x and not y for x, y in zip(a, b, strict=True))} / {sum(y and not x for x, y in zip(a, b, strict=True))}"
        rates = [60 * len(seeds) / seconds for seconds in (slow, fast)]
        lines.append(
            f"| {task}-diffusion | {percent(a)} | {percent(b)} | {only} | {mcnemar(a, b):.2g} | {rates[0]:.1f} | {rates[1]:.1f} "
            f"| {rates[1] / rates[0]:.1f} |"
        )
        print(lines[-1], flush=True)
        write_atomically(ROOT / "docs/results/against-robomimic.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
