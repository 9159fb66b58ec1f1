"""How well the control loop keeps its time: 50 Hz for ten minutes, 200 Hz with interpolation for two; docs/results/loop.md.

    python scripts/loop.py

`gpc deploy` on the real clock, with a bundled composition on the simulated robot. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tables import ROOT

from gpc.commands.cli import main as command
from gpc.disk import write_atomically
from gpc.results.run_folder import read_json

POLICIES = ["policies=[pusht-diffusion,pusht-flow]", "weights=[0.4,0.6]"]
COMMON = ["robot=simulated", "safety.actions=absolute", "mode=live", "fps=50", *POLICIES]
LOOPS = {
    "50 Hz": ["seconds=600"],
    "200 Hz, interpolated": ["seconds=120", "rate=200"],
}


def fly(name: str, keys: list[str], runs: Path) -> dict[str, Any]:
    """Run a flight and return its summary, also if one is on disk."""
    folder = runs / name.partition(",")[0].replace(" ", "")
    shutil.rmtree(folder, ignore_errors=True)
    if command(["deploy", *COMMON, *keys, f"run_dir={folder}"]) != 0:
        raise SystemExit(1)
    late = 1000 * np.asarray(zarr.open_group(folder / "episode.zarr", mode="r")["stream/late"])
    return read_json(folder / "summary.json") | {"over_1_ms": float((late > 1).mean())}


def row(name: str, summary: Mapping[str, Any]) -> str:
    jitter = " | ".join(f"{summary['jitter_ms'][which]:.3f}" for which in ("p50", "p99", "max"))
    chunk = ", ".join(f"{summary['chunk_ms'][which]:.0f}" for which in ("p50", "p99"))
    counts = f"{summary['chunks']} | {chunk} | {summary['events'].get('hold', 0)}"
    periods = f"{summary['periods']} | {summary['missed_deadlines']}"
    return f"| {name} | {periods} | {jitter} | {100 * summary['over_1_ms']:.2f} % | {counts} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/loop")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/loop.md")
    args = parser.parse_args()
    lines = [
        "# How well the control loop keeps its time",
        "",
        f"`scripts/loop.py`: `gpc deploy` for 600 s and for 120 s on {os.cpu_count()} cores, a diffusion and a flow policy",
        "together (8 steps of DPM-Solver++, a chunk every 160 ms) on the simulated PushT robot, as if its steps were 20 ms,",
        "recording included. Jitter: how long after its deadline a period begins. A deadline is missed where a period could not",
        "begin before the next was due.",
        "",
        "| loop | periods | missed | jitter ms p50 | p99 | max | over 1 ms | chunks | chunk ms p50, p99 | holds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row(name, fly(name, keys, args.runs)) for name, keys in LOOPS.items()),
    ]
    write_atomically(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
