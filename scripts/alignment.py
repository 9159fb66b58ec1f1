"""Measure the cost of another normaliser: success if one action dimension has less noise than the other.

    python scripts/alignment.py --out docs/results/alignment.md      # an hour on one core

In a composition with a policy whose second dimension has another scale, the second dimension of a PushT policy has 1 / ratio of
the noise that its network is trained with; `gpc.composition.noise_matching` adds the rest. Here the common normaliser is scaled.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

import gpc
from gpc.composition import align
from gpc.composition.composed import ComposedPolicy
from gpc.composition.composers import Convex
from gpc.disk import write_atomically
from gpc.policy.spec import Policy
from gpc.results.stats import mcnemar, paired_difference
from gpc.score.noise import NEAR_LEVEL

RATIOS = (1.0, 1.1, 1.5, 2.0, 4.0)
SAMPLERS = (
    gpc.Sampling("dpmpp_2m", 8),
    gpc.Sampling("dpmpp_2m", 16),
    gpc.Sampling("ancestral", 16),
)
EPISODES, SEED = 200, 400000

PREFACE = f"""# A normaliser that differs per dimension, and what it costs

`gpc` composes policies whose normalisers differ per dimension by adding noise to some dimensions (docs/alignment.md). Here
PushT's policies are seen from a coordinate in which their second action dimension holds 1 / ratio of the noise of the first, so
that both of a pair are raised. {EPISODES} episodes each on seeds {SEED} to {SEED + EPISODES - 1}, success in % with Wilson's 95 %
interval. A ratio of 1 adds no noise; at 1.1 (5 % around the mean) none is
added yet, and the level is a little off. The rows of this page are not in the repository;
`python scripts/alignment.py --out docs/results/alignment.md` makes them and the page.

No ratio up to 4 is shown to cost success: of 36 cells with a ratio above 1 one is below its column's first by more than chance
alone would often have it (diffusion, 1.1, 8 steps), and more are above than below. PushT's chunks leave room for a blunter
policy; a task that needs the last of precision may not.
"""


MEAN = """## Against passing the mean level to the network

The simpler way is to pass the geometric mean of the two levels to the network and to add no noise. It costs success from a ratio
of 2 on (the same seeds, dpmpp_2m with 8 steps), so gpc adds noise.
"""


def bent(policy: Policy, ratio: float) -> Policy:
    """Return the policy in a coordinate that scales its second dimension.

    Its second action dimension then has `ratio` times less noise than its first.
    """
    scale = policy.actions.scale[0], policy.actions.scale[1] / ratio
    return ComposedPolicy((policy,), Convex(torch.ones(1)), replace(policy.actions, scale=scale, bound=None))


def measured(names: Sequence[str], ratio: float, sampling: gpc.Sampling) -> gpc.Result:
    policy = gpc.compose([bent(gpc.load_policy(name), ratio) for name in names])
    return gpc.evaluate(policy, episodes=EPISODES, seed=SEED, sampler=sampling, engine=gpc.Engine(workers=1))


def cell(result: gpc.Result) -> str:
    low, high = result.success_ci95
    return f"{100 * result.success:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def against_the_mean() -> list[str]:
    """Compare adding noise with passing the mean level, on the same seeds."""
    lines = [
        "",
        MEAN,
        "| policy | ratio | raised | mean level | difference, points | p (McNemar) |",
        "|---" * 6 + "|",
    ]
    for ratio in RATIOS[2:]:
        raised = measured(["pusht-diffusion"], ratio, SAMPLERS[0])
        align.NEAR_LEVEL = float("inf")
        try:
            mean = measured(["pusht-diffusion"], ratio, SAMPLERS[0])
        finally:
            align.NEAR_LEVEL = NEAR_LEVEL
        first, second = ([row.success for row in result.rows] for result in (mean, raised))
        low, high = paired_difference(first, second)
        change = f"{100 * (mean.success - raised.success):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(
            f"| pusht-diffusion | {ratio:g} | {cell(raised)} | {cell(mean)} | {change} | {mcnemar(first, second):.2g} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    columns = [f"{sampling.method}, {sampling.steps} steps" for sampling in SAMPLERS]
    lines = [PREFACE, f"| policies | ratio | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for names in (["pusht-diffusion"], ["pusht-flow"], ["pusht-diffusion", "pusht-flow"]):
        for ratio in RATIOS:
            cells = [cell(measured(names, ratio, sampling)) for sampling in SAMPLERS]
            lines.append(f"| {' + '.join(names)} | {ratio:g} | {' | '.join(cells)} |")
            write_atomically(out, "\n".join(lines) + "\n")
    write_atomically(out, "\n".join([*lines, *against_the_mean()]) + "\n")


if __name__ == "__main__":
    main()
