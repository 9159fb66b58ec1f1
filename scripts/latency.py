"""Measure the cost of latency under each way to blend chunks; writes docs/results/deploy.md.

    python scripts/latency.py --episodes 100 --run runs/latency

Every episode is appended to RUN/episodes.jsonl; interrupt it at any time: the same command resumes. All cells have
the same seeds and noise. Success and jumps on the simulated robot in lockstep; about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import ROOT

import gpc
from gpc.bridge.blending import ChunkBlender, RealTimeChunking, RecedingHorizon, TemporalEnsembling
from gpc.bridge.clock import VirtualClock
from gpc.bridge.controller import HOLD, STOPPED, ChunkController, ChunkReply, ChunkRequest, ChunkSpec, Event, Watchdog
from gpc.bridge.loop import LIVE, ControlLoop, PeriodRecord
from gpc.bridge.robot import map_features
from gpc.bridge.safety import SafetyFilter, SafetyLimits
from gpc.commands.config import load_config
from gpc.commands.deploy import robot_from
from gpc.composition.inpainting import InpaintTarget
from gpc.disk import write_atomically
from gpc.inference.actor import pad_batch
from gpc.inference.chunk import sample_actions
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy
from gpc.results.stats import wilson
from gpc.types import Array

LATENCIES = (0.0, 0.05, 0.1, 0.2)
STITCHES: dict[str, ChunkBlender] = {
    "receding horizon": RecedingHorizon(8),
    "ensembling": TemporalEnsembling(request_every=1, decay=0.01, max_chunks=16),
    "real-time chunking": RealTimeChunking(8),
}
LANES, SEED = 50, 300_000
WATCHDOG = Watchdog(frozen_after=None)


@dataclass(frozen=True)
class Task:
    """An environment, its policies, and the dimensions in which jumps are counted."""

    env: str
    fps: float
    actions: Sequence[str]
    moving: int
    unit: str

    @property
    def members(self) -> list[str]:
        return [f"{self.env}-diffusion", f"{self.env}-flow"]


TASKS = (
    Task("pusht", 10, ["absolute"] * 2, 2, "in pixels, between two targets"),
    Task("lift", 20, ["relative"] * 6 + ["absolute"], 6, "between two moves, of 2 from end to end"),
)


@dataclass
class Flight:
    """The actions that an episode sent, and the kinds of its events."""

    sent: list[Array]
    events: list[str]

    def record(self, record: PeriodRecord) -> None:
        self.sent.append(record.sent)

    def event(self, event: Event) -> None:
        self.events.append(event.kind)


class Lanes:
    """Several episodes in lockstep, whose requests of a period are one batch."""

    def __init__(self, task: Task, policy: Policy, count: int) -> None:
        self.task, self.policy, self.sampling = task, policy, Sampling()
        config = load_config("deploy", ["robot=simulated", f"robot.settings.env={task.env}", f"fps={task.fps}"])
        self.robots = [robot_from(config) for _ in range(count)]
        for robot in self.robots:
            robot.connect()

    def run_episodes(self, stitch: ChunkBlender, latency: float, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Run one episode for each seed."""
        robots, period = self.robots[: len(seeds)], 1 / self.task.fps
        for robot, seed in zip(robots, seeds, strict=True):
            robot.reset(seed)
        clock = VirtualClock()
        loops = [self._loop(robot, stitch, period, clock) for robot in robots]
        coming: list[deque[tuple[float, ChunkReply]]] = [deque() for _ in robots]
        i = 0
        while busy := [k for k, robot in enumerate(robots) if not robot.done and loops[k].controller.mode != STOPPED]:
            clock.wait(now := i * period)
            asks = {k: request for k in busy if (request := loops[k].sense())}
            for k, reply in self._answers(asks, seeds).items():
                coming[k].append((now + latency - period * 1e-6, reply))
            for k in busy:
                while coming[k] and coming[k][0][0] <= now:
                    loops[k].controller.receive(now, coming[k].popleft()[1])
                loops[k].drive()
            i += 1
        return [self._row(robot, loop.sink) for robot, loop in zip(robots, loops, strict=True)]

    def _loop(self, robot: Any, stitch: ChunkBlender, period: float, clock: VirtualClock) -> ControlLoop:
        spec, read = self.policy.actions, self.policy.observations
        safety_filter = SafetyFilter(
            SafetyLimits(actions=self.task.actions).resolve(spec, period), list(robot.action_features)
        )
        controller = ChunkController(
            ChunkSpec(spec.start, spec.horizon, spec.dim, read.n_obs_steps), stitch, safety_filter, WATCHDOG
        )
        return ControlLoop(robot, map_features(robot, read, spec.dim), controller, LIVE, Flight([], []), clock=clock)

    def _answers(self, asks: Mapping[int, ChunkRequest], seeds: Sequence[int]) -> dict[int, ChunkReply]:
        if not asks:
            return {}
        spec = self.policy.actions
        lanes = [list(asks)[row] for row in pad_batch(np.arange(len(asks)))]
        chosen = [asks[k] for k in lanes]
        observation = {key: np.stack([request.observation[key] for request in chosen]) for key in chosen[0].observation}
        nothing = InpaintTarget(np.zeros((1, spec.horizon, spec.dim)), np.zeros(spec.horizon))
        decided = [request.known or nothing for request in chosen]
        known = InpaintTarget(np.concatenate([k.actions for k in decided]), np.stack([k.mask for k in decided]))
        numbers = np.array([request.number for request in chosen])
        chunks = sample_actions(
            self.policy, self.sampling, observation, np.array([seeds[k] for k in lanes]), numbers,
            known if known.mask.any() else None,
        )  # fmt: skip
        return {
            k: ChunkReply(request.number, chunk)
            for (k, request), chunk in zip(asks.items(), chunks[: len(asks)], strict=True)
        }

    def _row(self, robot: Any, flight: Flight) -> dict[str, Any]:
        stream = np.array(flight.sent)[:, : self.task.moving]
        jumps = np.linalg.norm(np.diff(stream[~np.isnan(stream).any(1)], axis=0), axis=1)
        held = flight.events.count(HOLD)
        return {
            "success": robot.success,
            "score": robot.score,
            "steps": robot.steps,
            "jump": jumps.max(),
            "holds": held,
        }


def measure(task: Task, episodes: int, path: Path) -> None:
    """Fly what the file does not hold yet."""
    done = {(row["env"], row["stitch"], row["latency"], row["seed"]) for row in rows_of(path)}
    cells = [(name, latency) for name in STITCHES for latency in LATENCIES]
    todo = {cell: [s for s in range(SEED, SEED + episodes) if (task.env, *cell, s) not in done] for cell in cells}
    if not any(todo.values()):
        return
    policy = gpc.compose([gpc.load_policy(name) for name in task.members], [0.5, 0.5])
    lanes = Lanes(task, policy, min(LANES, episodes))
    with path.open("a") as file:
        for (stitch, latency), seeds in todo.items():
            for first in range(0, len(seeds), LANES):
                some = seeds[first : first + LANES]
                for seed, row in zip(some, lanes.run_episodes(STITCHES[stitch], latency, some), strict=True):
                    key = {"env": task.env, "stitch": stitch, "latency": latency, "seed": seed}
                    file.write(json.dumps(key | row) + "\n")
                file.flush()
            print(task.env, stitch, latency, flush=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read the episodes on file; cut off a line that a kill left incomplete."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| stitch | latency | success % (95 %) | score | largest jump: mean, worst | episodes with a hold |"]
    lines += ["|---|---|---|---|---|---|"]
    for stitch in STITCHES:
        for latency in LATENCIES:
            cell = [row for row in rows if (row["stitch"], row["latency"]) == (stitch, latency)]
            good, jumps = sum(row["success"] for row in cell), [row["jump"] for row in cell]
            low, high = wilson(good, len(cell))
            lines.append(
                f"| {stitch} | {1000 * latency:.0f} ms | {100 * good / len(cell):.1f} [{100 * low:.1f}, {100 * high:.1f}] "
                f"| {np.mean([row['score'] for row in cell]):.3f} | {np.mean(jumps):.3g}, {np.max(jumps):.3g} "
                f"| {sum(row['holds'] > 0 for row in cell)} |"
            )
    return lines


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "# What latency costs, by the way chunks are stitched",
        "",
        "`scripts/latency.py`: `gpc deploy`'s control loop in lockstep on the simulated robot, bundled diffusion and flow policies",
        f"half and half, {Sampling().method} with {Sampling().steps} steps, seeds and noise the same in every",
        f"cell (seeds from {SEED} on). A chunk is handed in at the first period after its latency. Success with Wilson's 95 %",
        "interval; the largest jump between two actions executed one after the other, mean and worst over episodes.",
        "The rows are not in the repository; `python scripts/latency.py --episodes 100 --run RUN` makes them and the page.",
    ]
    for task in TASKS:
        episodes = [row for row in rows if row["env"] == task.env]
        each = len(episodes) // len(STITCHES) // len(LATENCIES)
        title = f"## {task.env}: {each} episodes a cell, {task.fps:g} steps in a second; jumps {task.unit}"
        lines += ["", title, "", *table(episodes)]
    return [
        *lines,
        "",
        "At 10 steps in a second 50 ms and 100 ms are the same period late, so on pusht these rows are equal.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--run", type=Path, default=ROOT / "runs/latency")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/deploy.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.run.mkdir(parents=True, exist_ok=True)
    path = args.run / "episodes.jsonl"
    for task in TASKS:
        measure(task, args.episodes, path)
    write_atomically(args.out, "\n".join(page(rows_of(path))) + "\n")


if __name__ == "__main__":
    main()
