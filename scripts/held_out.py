"""Write the held-out episodes of a task as a file for `demonstrations`.

    python scripts/held_out.py pusht --data FOLDER --out tests/data/pusht-held-out.zarr.zip

FOLDER holds the demonstrations as for scripts/train.py; these episodes trained no bundled policy. The file holds every
low-dimensional observation that a bundled policy of the task reads, in float32; cameras and point clouds by name, as
`--observations pixels`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from recipes import PUSHT, RECIPES, ROBOSUITE, Task

from gpc.demonstrations import Demonstrations, write_replay_buffer

TASKS = {"pusht": PUSHT, **ROBOSUITE}


def low_dimensional(task: Task) -> list[str]:
    """Return the keys that the task's policies read, without images and points."""
    inputs = [spec for recipe in RECIPES.values() if recipe.task is task for spec in recipe.model["inputs"].items()]
    return list(dict.fromkeys(key for key, spec in inputs if not spec.get("image") and not spec.get("points")))


def held_out(task: Task, folder: Path, keys: list[str]) -> Demonstrations:
    demonstrations = task.load(folder, keys)
    chosen = demonstrations.select(list(task.held_out(len(demonstrations.episode_ends))))
    small = {k: v if v.dtype == np.uint8 else v.astype(np.float32) for k, v in chosen.observations.items()}
    return replace(chosen, observations=small, actions=chosen.actions.astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="FILE.zarr.zip, or a folder FILE.zarr")
    parser.add_argument("--observations", nargs="+", default=[], help="further keys, as pixels")
    args = parser.parse_args()
    task = TASKS[args.task]
    write_replay_buffer(args.out, held_out(task, args.data, [*low_dimensional(task), *args.observations]))


if __name__ == "__main__":
    main()
