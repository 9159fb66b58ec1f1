"""Measure the speed that gpc promises, in one run: `python scripts/bench.py [PART ...]`. 20 minutes on two cores.

On PushT the comparison is the paper's way: one stock environment, batch 1, the members one after the other, a diffusers scheduler;
on Lift it is robomimic's own loop. Every ratio is of two timings of this run; episodes that are compared have the same seeds.
`--quick` is a smoke test. `python scripts/bench.py gpu` is scripts/bench_gpu.py, which measures a card, with its options.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import gym_pusht  # noqa: F401  (registers the stock environment)
import gymnasium
import numpy as np
import torch
from diffusers import DDPMScheduler

import gpc
from gpc.policies.bundled import BundledPolicy, build
from gpc.policy.spec import Observation, Policy
from gpc.results.stats import mean_interval, wilson
from gpc.score.denoiser import Denoiser
from gpc.score.noise import VariancePreserving

DDPM = {"type": "squaredcos", "steps": 100}
SEED = 400_000
DEFAULT = gpc.Sampling()


def random_policy(number: int) -> BundledPolicy:
    """Return a state policy with a random U-Net of 4.5 million parameters."""
    torch.manual_seed(number)
    card = {
        "name": f"random-{number}",
        "actions": {"horizon": 16, "names": ["x", "y"], "scale": [256.0] * 2, "offset": [256.0] * 2, "start": -1, "bound": 1.0},
        "model": {
            "inputs": {"state": {"shape": [5], "offset": 256.0, "scale": 256.0, "angles": [4]}},
            "n_obs_steps": 2,
            "network": {"type": "unet", "widths": [128, 256]},
            "schedule": DDPM,
            "prediction": "noise",
        },
    }  # fmt: skip
    policy = build(card)
    policy.module.eval().requires_grad_(False)
    return policy


class OneAtATime:
    """One environment, batch 1, member after member, a diffusers scheduler.

    This is how the paper's code evaluates a composition.
    """

    def __init__(self, policies: Sequence[Policy], weights: Sequence[float], steps: int) -> None:
        self.policy = gpc.compose(policies, weights)
        self.sigmas = VariancePreserving.squaredcos(100).sigmas
        self.scheduler = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=True)
        self.scheduler.set_timesteps(steps)
        self.env = gymnasium.make("gym_pusht/PushT-v0", obs_type="state", max_episode_steps=300)

    def chunk(self, observation: Observation, generator: torch.Generator) -> torch.Tensor:
        """Sample w1 * eps1 + w2 * eps2 with the scheduler, eps = (x - denoised) / sigma."""
        denoiser = self.policy.condition(observation)
        x = torch.randn(1, 16, 2, generator=generator)
        for t in self.scheduler.timesteps:
            sigma = self.sigmas[t]
            alpha = (1 + sigma * sigma).rsqrt()
            clean = denoiser(x / alpha, sigma)
            eps = ((x / alpha - clean) / sigma).float()
            x = self.scheduler.step(eps, int(t), x, generator=generator).prev_sample
        return x

    def episode(self, seed: int) -> tuple[bool, float]:
        """(success, score) of one episode: 2 observation steps, 8 of 16 actions executed."""
        generator = torch.Generator().manual_seed(seed)
        spec = self.policy.actions
        frame, _ = self.env.reset(seed=seed)
        history, best, over = [frame, frame], 0.0, False
        while not over:
            stacked = {"state": np.stack(history[-2:])[None]}
            actions = spec.decode(self.chunk(self.policy.observations.read(stacked), generator))[0].numpy()
            for action in actions[1:9]:
                frame, reward, terminated, truncated, _ = self.env.step(action)
                history, best, over = [history[-1], frame], max(best, float(reward)), terminated or truncated
                if over:
                    break
        return best >= 1, best

    def run(self, seeds: range) -> tuple[float, list[bool], list[float]]:
        """(seconds, successes, scores)."""
        begin = time.perf_counter()
        results = [self.episode(seed) for seed in seeds]
        return time.perf_counter() - begin, [s for s, _ in results], [s for _, s in results]


def fastest_threads() -> int:
    """Set torch's threads to the faster of one and all cores, at batch 1."""
    way = OneAtATime([random_policy(0)], [1.0], 20)
    observation = {"state": torch.zeros(1, 2, 5)}
    seconds = {}
    for threads in (1, os.cpu_count() or 1):
        torch.set_num_threads(threads)
        way.chunk(observation, torch.Generator())
        begin = time.perf_counter()
        for _ in range(5):
            way.chunk(observation, torch.Generator())
        seconds[threads] = time.perf_counter() - begin
    torch.set_num_threads(min(seconds, key=lambda threads: seconds[threads]))
    return torch.get_num_threads()


class Timed:
    """A policy whose network calls leave (begin, end) in `log`."""

    def __init__(self, policy: Policy, log: list[tuple[float, float]]) -> None:
        self.policy, self.log = policy, log
        self.name, self.fingerprint = policy.name, policy.fingerprint
        self.actions, self.observations, self.levels = policy.actions, policy.observations, policy.levels

    def timed(self, call: Callable, *args: object) -> object:
        begin = time.perf_counter()
        out = call(*args)
        self.log.append((begin, time.perf_counter()))
        return out

    def condition(self, observation: Observation) -> Denoiser:
        denoiser = self.timed(self.policy.condition, observation)
        return lambda x, sigma: self.timed(denoiser, x, sigma)


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds during which at least one span was open."""
    total, until = 0.0, 0.0
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


class WorkerMemory(threading.Thread):
    """Largest resident size of a simulator process in KiB, sampled twice a second."""

    peak = 0

    def run(self) -> None:
        me = f"PPid:\t{os.getpid()}\n"
        while True:
            for status in Path("/proc").glob("[0-9]*/status"):
                with suppress(OSError, IndexError):  # it ended while we looked
                    text = status.read_text()
                    if me in text:
                        self.peak = max(self.peak, int(text.partition("VmHWM:")[2].split()[0]))
            time.sleep(0.5)


def ours(
    policies: Sequence[Policy], weights: Sequence[float], episodes: int, sampling: gpc.Sampling = DEFAULT
) -> tuple[float, gpc.Result]:
    """(seconds, result) of `gpc.evaluate`, run folder included."""
    begin = time.perf_counter()
    policy = gpc.compose(policies, weights)
    result = gpc.evaluate(policy, "pusht", episodes=episodes, seed=SEED, sampler=sampling)
    return time.perf_counter() - begin, result


def proportion(successes: Sequence[bool]) -> str:
    low, high = wilson(sum(successes), len(successes))
    return f"{np.mean(successes):.2f} [{low:.2f}, {high:.2f}]"


def interval(values: Sequence[float]) -> str:
    low, high = mean_interval(values)
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def against_the_paper(say: Callable[[str], None], naive_episodes: int, many: int) -> None:
    """Compare the bundled policies with the paper's 100 DDPM steps."""
    policies, weights = [gpc.load_policy(name) for name in ("pusht-diffusion", "pusht-beso")], [0.5, 0.5]
    seconds, success, scores = OneAtATime(policies, weights, 100).run(range(SEED, SEED + naive_episodes))
    slow = 60 * naive_episodes / seconds
    say("pusht-diffusion + pusht-beso, weights 0.5, 0.5. The last column compares on the first row's seeds.\n")
    say("| way | episodes | episodes/minute | ratio | success [95 %] | score [95 %] | score difference [95 %] |")
    say("|---|---|---|---|---|---|---|")
    stock = "one environment, batch 1, 100 DDPM steps"
    say(f"| {stock} | {naive_episodes} | {slow:.1f} | 1 | {proportion(success)} | {interval(scores)} | |")
    for title, episodes, sampling in (
        ("gpc, default sampler", many, DEFAULT),
        ("gpc, 100 ancestral steps", many // 3, gpc.Sampling("ancestral", 100)),
    ):
        seconds, result = ours(policies, weights, episodes, sampling)
        mine = {row.seed: row.score for row in result.rows}
        difference = interval([mine[SEED + i] - score for i, score in enumerate(scores)])
        fast, success = 60 * episodes / seconds, [row.success for row in result.rows]
        say(
            f"| {title} | {episodes} | {fast:.1f} | {fast / slow:.1f} | {proportion(success)} | "
            f"{interval(list(mine.values()))} | {difference} |"
        )


def two_random_networks(say: Callable[[str], None], naive_episodes: int, episodes: int) -> None:
    """Compare two U-Nets of 4.5M parameters with one at a time, and split our time."""
    policies = [random_policy(0), random_policy(1)]
    millions = sum(p.numel() for p in policies[0].module.parameters()) / 1e6
    slow, _, _ = OneAtATime(policies, [0.5, 0.5], 16).run(range(SEED, SEED + naive_episodes))
    slow *= episodes / naive_episodes
    log: list[tuple[float, float]] = []
    timed = [Timed(policy, log) for policy in policies]
    sampling = gpc.Sampling("ancestral", 16)
    fast, result = ours(timed, [0.5, 0.5], episodes, sampling)
    network, waiting = union(log), result.stats.waiting_seconds
    say(f"\n{episodes} episodes of {result.rows[0].steps} steps, two U-Nets of {millions:.2f}M parameters, 16 steps:\n")
    say("| way | seconds | ratio |\n|---|---|---|")
    scaled = "" if naive_episodes == episodes else f", scaled up from {naive_episodes} episodes"
    say(f"| one at a time{scaled} | {slow:.1f} | 1 |")
    say(f"| gpc | {fast:.1f} | 1/{slow / fast:.1f} |")
    rest = fast - network - waiting
    say(
        f"\nOf gpc's {fast:.1f} s: networks {network:.1f} s, waiting for simulators (their start included) {waiting:.1f} s, "
        f"everything else (composition, sampler, engine, run folder) {rest:.1f} s = {100 * rest / fast:.1f} %."
    )


def growth(say: Callable[[str], None], unit: int) -> None:
    """Measure the cost over episodes, policies and candidates."""
    policies = [random_policy(i) for i in range(4)]
    say("\nHow the cost grows (random networks, default sampler, 300-step episodes):\n")
    say("| policies | candidates | episodes | seconds | seconds / episode |\n|---|---|---|---|---|")
    for count, episodes in [(2, unit), (2, 2 * unit), (2, 4 * unit), (1, 2 * unit), (3, 2 * unit), (4, 2 * unit)]:
        seconds, _ = ours(policies[:count], [1 / count] * count, episodes)
        say(f"| {count} | 1 | {episodes} | {seconds:.1f} | {seconds / episodes:.3f} |")
    for step in (0.5, 0.25, 0.1):  # a search, its report episodes included
        each, candidates = unit // 4, round(1 / step) + 1
        begin = time.perf_counter()
        result = gpc.search(policies[:2], search=gpc.Grid(step=step, episodes=each), report_episodes=each)
        seconds, episodes = time.perf_counter() - begin, len(result.rows)
        say(f"| 2 | {candidates} | {episodes} | {seconds:.1f} | {seconds / episodes:.3f} |")


def adapters(
    say: Callable[[str], None], quick: bool, lerobot: Path | None = None, batch: int = 64, steps: int = 8
) -> None:
    """Compare a library's own calls with `condition` and `denoised` of its adapter.

    Both run in turns on one thread.
    """
    torch.set_num_threads(1)
    repeats = 3 if quick else 50
    say(
        f"\nAdapters, batch {batch}, one chunk of {steps} steps, medians of {repeats}, observations preprocessed by ours only:\n"
    )
    say("| checkpoint | the library's calls, ms | through the adapter, ms | overhead |\n|---|---|---|---|")
    checkpoints = {"robomimic: lift-diffusion": _robomimic}
    if lerobot:
        checkpoints[f"LeRobot: {lerobot.name}"] = partial(_lerobot, lerobot)
    for name, ways in checkpoints.items():
        bare, adapted = ways(batch, steps)
        seconds: dict[Callable[[], None], list[float]] = {bare: [], adapted: []}
        for way in [bare, adapted] * (repeats + 1):
            begin = time.perf_counter()
            way()
            seconds[way].append(time.perf_counter() - begin)
        direct, through = (1000 * float(np.median(seconds[way][1:])) for way in (bare, adapted))
        say(f"| {name} | {direct:.1f} | {through:.1f} | {100 * (through / direct - 1):+.1f} % |")


def _lerobot(folder: Path, batch: int, steps: int) -> tuple[Callable[[], None], Callable[[], None]]:
    policy = gpc.load_policy(f"lerobot:{folder}")
    raw = {key: 512 * torch.rand(batch, 2, *shape) for key, shape in policy.observations.shapes.items()}
    rows = policy.preprocess({key: value.flatten(0, 1) for key, value in raw.items()})
    ready = {key: rows[key].unflatten(0, (batch, 2)) for key in raw}
    diffusion = policy.model.diffusion

    @torch.inference_mode()
    def bare() -> None:
        condition = diffusion._prepare_global_conditioning(ready)
        for _ in range(steps):
            diffusion.unet(torch.zeros(batch, 16, 2), torch.full((batch,), 50), global_cond=condition)

    return bare, _through(policy, raw, batch, steps)


def _robomimic(batch: int, steps: int) -> tuple[Callable[[], None], Callable[[], None]]:
    policy = gpc.load_policy("lift-diffusion")
    raw = {key: torch.rand(batch, 2, *shape) for key, shape in policy.observations.shapes.items()}
    rows = {key: value.flatten(0, 1) for key, value in raw.items()}

    @torch.inference_mode()
    def bare() -> None:
        condition = policy.nets["obs_encoder"](obs=rows).reshape(batch, -1)
        for _ in range(steps):
            policy.nets["noise_pred_net"](torch.zeros(batch, 16, 7), torch.full((batch,), 50), global_cond=condition)

    return bare, _through(policy, raw, batch, steps)


def _through(policy: Policy, raw: Observation, batch: int, steps: int) -> Callable[[], None]:
    x = torch.zeros(batch, policy.actions.horizon, policy.actions.dim, dtype=torch.float64)
    sigma = torch.tensor(policy.levels.trained[50], dtype=torch.float64)

    def adapted() -> None:
        denoiser = policy.condition(raw)
        for _ in range(steps):
            denoiser(x, sigma)

    return adapted


def pusht(say: Callable[[str], None], quick: bool) -> None:
    """Measure rollouts on PushT."""
    slow, slow_random, many, unit = (1, 1, 6, 8) if quick else (8, 12, 192, 16)
    say(f"The slow way uses {fastest_threads()} thread(s), the faster choice at batch 1; gpc one for each member.\n")
    against_the_paper(say, slow, many)
    two_random_networks(say, slow_random, 4 if quick else 100)
    growth(say, unit)


def lift(say: Callable[[str], None], quick: bool) -> None:
    """Measure rollouts on Lift beside robomimic's."""
    from bench_lift import lift_speed

    lift_speed(say, quick)


def serve(say: Callable[[str], None], quick: bool) -> None:
    """Measure the policy server over the number of its clients."""
    from bench_serve import serving_speed

    serving_speed(say, quick, fastest_threads())


def engine(say: Callable[[str], None], quick: bool) -> None:
    """Measure the rollout engine's batches, and networks and simulators at the same time."""
    from bench_engine import engine_speed

    engine_speed(say, quick)


PARTS = {"pusht": pusht, "engine": engine, "adapters": adapters, "lift": lift, "serve": serve}


def main() -> None:
    if sys.argv[1:2] == ["gpu"]:
        from bench_gpu import main as measure_card

        return measure_card(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few episodes, meaningless ratios")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--lerobot", type=Path, help="a checkpoint of scripts/train_lerobot.py, for the part adapters")
    args = parser.parse_args()
    if unknown := sorted({*args.what} - {*PARTS}):
        parser.error(f"{unknown[0]}: choose from {', '.join(PARTS)}")
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    watch = WorkerMemory(daemon=True)
    watch.start()
    say("# Speed\n")
    command = " ".join(["python", *sys.argv])
    say(f"`{command}` on {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}.\n")
    parts = PARTS | {"adapters": partial(adapters, lerobot=args.lerobot)}
    for part in args.what:
        parts[part](say, args.quick)
    engine, worker = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, watch.peak / 1024
    say(
        f"\nPeak memory of the whole run: {engine:.0f} MiB in the engine's process, {worker:.0f} MiB in the largest worker."
    )
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
