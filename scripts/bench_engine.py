"""The rollout engine's batches and its overlap of networks and simulators: what `scripts/bench.py engine` measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

import gpc
from gpc.inference.actor import ChunkActor
from gpc.inference.settings import Sampling
from gpc.policy.env_spec import EnvSpec
from gpc.rollout.engine import Engine, Job, RolloutStats, rollout
from gpc.rollout.env import LaneSpec
from gpc.score.keyed_noise import keyed_noise
from gpc.types import Array

CHUNK, STEPS, STEP = 8, 300, 0.001  # actions of a chunk; steps of an episode; seconds of a simulated step


class Sleeping(gymnasium.Env[dict[str, Array], Array]):
    """An environment that takes `STEP` seconds for a step, and no core."""

    observation_space = spaces.Dict({"state": spaces.Box(-1.0, 1.0, (3,))})
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Array], dict[str, Any]]:
        """Begin an episode, at no cost."""
        return {"state": np.zeros(3, np.float32)}, {}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Sleep."""
        time.sleep(STEP)
        return {"state": np.zeros(3, np.float32)}, 0.0, False, False, {"is_success": False}


@dataclass
class Act:
    """An actor that takes `seconds` for each row, and no core."""

    seconds: float = 0.0
    spent: list[float] = field(default_factory=list)
    begin: float = 0.0  # of the first call: the start of simulators is not counted

    def __call__(self, observation: Mapping[str, Array], weights: Array, seeds: Array, chunks: Array) -> Array:
        """Sleep, then act at random."""
        begin = time.perf_counter()
        self.begin = self.begin or begin
        time.sleep(self.seconds * len(seeds))
        self.spent.append(time.perf_counter() - begin)
        rng = np.random.default_rng(int(seeds[0]))
        return 256 * (1 + rng.uniform(-1, 1, (len(seeds), CHUNK, 2)))


def engine_speed(say: Callable[[str], None], quick: bool) -> None:
    """Measure batches, overlap, keyed noise and threads that share a batch."""
    batches(say, 60 if quick else 1000)
    overlap(say, 16 if quick else 64)
    noise(say, 2 if quick else 20)
    shared_rows(say, 2 if quick else 9)


def batches(say: Callable[[str], None], episodes: int) -> None:
    """Count the calls of the actor by the number of workers."""
    say("## Lanes in one call of the actor\n")
    say(
        f"{episodes} PushT episodes of {STEPS} steps, 64 lanes, an actor that moves at random, 1 ms a row. A call is for one"
    )
    say("half of the lanes; the share is of those with an unfinished episode.\n")
    say("| workers | calls | mean batch | share of the half's lanes |")
    say("|---|---|---|---|")
    lane = LaneSpec(EnvSpec("pusht", CHUNK, STEPS), ("state", "keypoints"), 2)
    for workers in (2, 8, 16):
        stats = RolloutStats()
        jobs = [Job(0, (1.0,), seed) for seed in range(episodes)]
        for _ in rollout(jobs, Act(0.001), lane, Engine(64, workers), stats):
            pass
        say(f"| {workers} | {stats.calls} | {stats.rows / stats.calls:.1f} | {stats.rows / stats.lanes:.1%} |")


def overlap(say: Callable[[str], None], episodes: int) -> None:
    """Compare a rollout with the longer of what it is made of."""
    say("\n## Networks and simulators at the same time\n")
    say(
        f"16 lanes in 2 workers, {episodes} episodes of {STEPS} steps; networks and simulators sleep, so that they need no core.\n"
    )
    say("| networks : simulators | networks s | simulators s | rollout s | over the longer one |")
    say("|---|---|---|---|---|")
    lane = LaneSpec(EnvSpec(Sleeping, CHUNK, STEPS), ("state",), 1)
    for name, ratio in (("1 : 2", 0.5), ("1 : 1", 1.0), ("2 : 1", 2.0)):
        act = Act(ratio * STEP * CHUNK / 2)  # two workers simulate at the same time
        jobs = [Job(0, (1.0,), seed) for seed in range(episodes)]
        for _ in rollout(jobs, act, lane, Engine(16, 2)):
            pass
        whole = time.perf_counter() - act.begin
        networks, simulators = sum(act.spent), episodes * STEPS * step_seconds() / 2
        say(f"| {name} | {networks:.2f} | {simulators:.2f} | {whole:.2f} | {whole / max(networks, simulators):.2f} |")


def step_seconds(repeats: int = 200) -> float:
    """Return the seconds that a simulated step takes here."""
    env = Sleeping()
    begin = time.perf_counter()
    for _ in range(repeats):
        env.step(np.zeros(2))
    return (time.perf_counter() - begin) / repeats


def noise(say: Callable[[str], None], repeats: int) -> None:
    """Measure keyed noise against a generator for each row."""
    say("\n## Keyed noise\n")
    say("| rows | draws | ms | a new generator for each row, ms | ratio |")
    say("|---|---|---|---|---|")
    for rows in (16, 256, 1024, 4096):
        for draws in (1, 17):
            keys = np.arange(rows), np.zeros(rows, int)
            ours = _median(lambda keys=keys, draws=draws: keyed_noise(*keys, draws, (16, 2)), repeats)
            new = _median(lambda keys=keys, draws=draws: _generators(*keys, draws), repeats)
            say(f"| {rows} | {draws} | {ours:.2f} | {new:.2f} | {new / ours:.1f} |")


def shared_rows(say: Callable[[str], None], repeats: int) -> None:
    """Measure a batch whose rows two threads share."""
    from gpc.inference import actor

    say("\n## A batch of 64 rows in one and in two threads\n")
    say("| policies | one, ms | two, ms | ratio |")
    say("|---|---|---|---|")
    torch.set_num_threads(1)
    for names in (["pusht-diffusion"], ["pusht-diffusion", "pusht-flow"]):
        composition = gpc.compose([gpc.load_policy(name) for name in names])
        act = ChunkActor(composition, Sampling(), CHUNK)
        shapes = composition.observations.shapes.items()
        inputs = (
            {key: np.ones((64, composition.observations.n_obs_steps, *shape), np.float32) for key, shape in shapes},
            np.full((64, len(names)), 1 / len(names)),
            np.arange(64),
            np.zeros(64, int),
        )
        times = []
        for threads in (1, 2):
            actor.sampling_threads = lambda threads=threads: threads
            times.append(_median(lambda act=act, inputs=inputs: act(*inputs), repeats))
        say(f"| {' + '.join(names)} | {times[0]:.0f} | {times[1]:.0f} | {times[0] / times[1]:.2f} |")


def _generators(seeds: Array, chunks: Array, draws: int) -> None:
    for seed, chunk in zip(seeds, chunks, strict=True):
        key = np.array([seed, chunk], np.uint64)
        np.random.Generator(np.random.Philox(key=key)).standard_normal((draws, 16, 2))


def _median(function: Callable[[], Any], repeats: int) -> float:
    """Return the median duration in ms."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times))
