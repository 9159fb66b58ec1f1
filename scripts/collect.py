"""Collect demonstrations of the scripted experts: `python scripts/collect.py --task lift --episodes 300 --out FOLDER`.

Seeds count up from --seed until --episodes of them have succeeded; only these are kept. FOLDER then holds `lift.hdf5`
(robomimic's layout), `lift.zarr` (a replay buffer) and `lift.json` (how many were tried and kept, in all and of each mode).
Every episode, kept or not, is also a file in `lift.episodes/`: interrupt it at any time, the same command resumes, and a larger
--episodes adds to them. What is written depends on the seeds alone. Images and point clouds are further observation keys:
`--observations agentview_image agentview_points`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gpc.demonstrations import Demonstrations, write_replay_buffer, write_robomimic
from gpc.disk import write_atomically
from gpc.envs import experts
from gpc.errors import GpcError, InputError
from gpc.results.run_folder import read_json
from gpc.results.stats import wilson

TASKS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
LOW_DIM = ("object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
MAX_STEPS = 300


def held_out(episodes: int) -> range:
    """Return the episodes that no policy is trained on."""
    return range(9, episodes, 20)


@cache
def settings() -> dict[str, Any]:
    """Return robosuite's arguments of these data, which are stored in the file."""
    from gpc.envs.from_robosuite import controllers

    controller = controllers.load_composite_controller_config(robot="Panda")
    controller["body_parts"]["right"]["input_ref_frame"] = "world"
    return {"robots": ["Panda"], "controller_configs": controller, "control_freq": 20, "reward_shaping": False}


@cache
def environment(task: str, keys: tuple[str, ...]) -> Any:
    """Return the simulator of this process."""
    from gpc.envs.from_robosuite import Robosuite

    return Robosuite(list(keys), MAX_STEPS, TASKS[task], settings=settings())


def end_with_parent() -> None:
    """End this worker if the script ends or is killed."""
    parent = multiprocessing.parent_process()
    Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def play(task: str, keys: tuple[str, ...], folder: Path, seed: int) -> Path:
    """Return the file of the episode of a seed; run the episode if it is not there."""
    path = folder / f"{seed}.npz"
    if path.exists():
        return path
    episode = experts.play(environment(task, keys), TASKS[task], seed)
    note = {"seed": seed, "success": episode.success, "tries": episode.tries, **asdict(episode.modes)}
    arrays = {f"obs/{key}": np.stack([frame[key] for frame in episode.frames]) for key in keys}
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, note=json.dumps(note), actions=episode.actions, rewards=episode.rewards, **arrays)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return path


def successes(args: argparse.Namespace, folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Episodes in the order of their seeds; the caller stops when it has enough."""
    work = partial(play, args.task, tuple(args.observations), folder)
    seeds, pending = itertools.count(args.seed), deque()
    os.environ["PYTHONSAFEPATH"] = "1"  # workers begin with `python -c`, which imports from the current folder first
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            while True:
                while len(pending) < 2 * args.workers:
                    pending.append(pool.submit(work, next(seeds)))
                path = pending.popleft().result()
                with np.load(path) as file:
                    yield path, json.loads(str(file["note"]))
        finally:
            pool.shutdown(cancel_futures=True)


def collect(args: argparse.Namespace, folder: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """Return the files of the first successful episodes, and the notes until then."""
    files, notes = [], []
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task(args.task, total=args.episodes)
        for path, note in successes(args, folder):
            notes.append(note)
            if note["success"]:
                files.append(path)
            progress.update(bar, completed=len(files), description=f"{args.task}, {len(notes)} tried, kept")
            if len(files) == args.episodes:
                return files, notes


def check_folder(folder: Path, config: dict[str, Any]) -> None:
    """Begin a folder of episodes, or resume one of the same expert and simulator."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    if path.exists() and (before := read_json(path)) != config:
        key = next(key for key in config if config[key] != before[key])
        raise InputError(f"{folder} was started with {key}={before[key]}, now it is {config[key]}; use another --out")
    write_atomically(path, json.dumps(config, indent=1) + "\n")


def write(args: argparse.Namespace, files: Sequence[Path], notes: Sequence[dict[str, Any]]) -> None:
    """Write both stores, of the successful episodes."""
    episodes = [dict(np.load(file)) for file in files]
    lengths = [len(episode["actions"]) for episode in episodes]
    joined = {name: np.concatenate([e[name] for e in episodes]) for name in episodes[0] if name != "note"}
    observations = {key: joined[f"obs/{key}"] for key in args.observations}
    demonstrations = Demonstrations(observations, joined["actions"], np.cumsum(lengths))
    described = {
        "env_name": TASKS[args.task],
        "env_version": version("robosuite"),
        "type": 1,
        "env_kwargs": settings(),
    }
    successful = [note for note in notes if note["success"]]
    write_robomimic(
        args.out / f"{args.task}.hdf5",
        demonstrations,
        joined["rewards"],
        described,
        successful,
        held_out(len(successful)),
    )
    write_replay_buffer(args.out / f"{args.task}.zarr", demonstrations)


def report(args: argparse.Namespace, notes: Sequence[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """Return how many episodes were tried and kept, in all and of each mode."""

    def counts(chosen: Sequence[dict[str, Any]]) -> dict[str, int]:
        return {"tried": len(chosen), "kept": sum(note["success"] for note in chosen)}

    modes = {
        field: {
            mode: counts([note for note in notes if note[field] == mode]) for mode in sorted({n[field] for n in notes})
        }
        for field in experts.Modes.__dataclass_fields__
    }
    tries = Counter(note["tries"] for note in notes)
    total = counts(notes)
    return {
        "seeds": [args.seed, args.seed + len(notes) - 1],
        **total,
        "success_ci95": wilson(total["kept"], total["tried"]),
        "modes": modes,
        "tries": tries,
        **config,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--seed", type=int, default=700_000)
    parser.add_argument("--observations", nargs="+", default=[], help="further keys, as agentview_image")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    if args.episodes < 1 or args.workers < 1:
        parser.error(f"--episodes {args.episodes}, --workers {args.workers}: give 1 or more")
    args.observations = [*LOW_DIM, *args.observations]
    folder = args.out / f"{args.task}.episodes"
    config = {
        "task": args.task,
        "observations": args.observations,
        "expert": hashlib.sha256(Path(experts.__file__).read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in ("robosuite", "mujoco", "numpy")},
    }
    try:
        check_folder(folder, config)
        files, notes = collect(args, folder)
        write(args, files, notes)
        write_atomically(args.out / f"{args.task}.json", json.dumps(report(args, notes, config), indent=1) + "\n")
    except GpcError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
