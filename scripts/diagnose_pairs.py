"""Run `gpc diagnose` on every pair of bundled policies of a task, for docs/results/diagnosis.md.

    python scripts/diagnose_pairs.py --held-out FOLDER

FOLDER holds TASK.zarr.zip, written by scripts/held_out.py with the cameras of the policies. Every diagnosis is a process of
its own, whose time is recorded. A finished diagnosis is only read; delete its folder to run it again. Writes
docs/results/evidence/diagnoses.json, from which `scripts/pages.py` makes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from tables import ROOT

from gpc.disk import write_atomically
from gpc.policy.load import bundled_cards
from gpc.results.run_folder import read_json

TASKS = ("pusht", "lift")


def pairs(task: str) -> list[tuple[str, str]]:
    return list(combinations([name for name in bundled_cards() if name.startswith(f"{task}-")], 2))


def diagnose(task: str, pair: tuple[str, str], held_out: Path, folder: Path) -> dict[str, Any]:
    """Return the figures of the page and the seconds that the command took."""
    if not (folder / "seconds").exists():
        keys = [f"env={task}", f"policies=[{','.join(pair)}]", f"demonstrations={held_out}", f"run_dir={folder}"]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-P", "-m", "gpc.commands.cli", "diagnose", *keys], check=True, env=os.environ)
        write_atomically(folder / "seconds", f"{time.monotonic() - begin:.1f}\n")
    diagnosis = read_json(folder / "diagnosis.json")
    errors = diagnosis["denoising_error"]
    return {
        "policies": pair,
        "seconds": float((folder / "seconds").read_text()),
        "disagreement": max(next(iter(diagnosis["disagreement_by_sigma"].values()))),
        "weights": errors["weights"],
        "pc_gain": errors["pc_gain"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/diagnoses")
    args = parser.parse_args()
    diagnoses = [
        diagnose(task, pair, args.held_out / f"{task}.zarr.zip", args.runs / "+".join(pair))
        for task in TASKS
        for pair in pairs(task)
    ]
    write_atomically(
        ROOT / "docs/results/evidence/diagnoses.json", json.dumps({"diagnoses": diagnoses}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
