"""`gpc diagnose` on every pair of bundled policies of a task; does the predicted gain rank the measured ones?

    python scripts/diagnose_pairs.py --held-out FOLDER --out docs/results/diagnosis.md

FOLDER holds TASK.zarr.zip (pusht, lift, can, square), written by scripts/held_out.py with the cameras of the policies. Every
diagnosis is a process of its own, and its time is that of the whole command. Measured gains are those of the recorded searches
under docs/results/runs. A finished diagnosis is only read; delete its folder to run it again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from scipy import stats
from tables import ROOT, short

from gpc.disk import write_atomically
from gpc.policy.load import bundled_cards
from gpc.results.run_folder import read_json

TASKS = ("pusht", "lift", "can", "square")


def pairs(task: str) -> list[tuple[str, str]]:
    return list(combinations([name for name in bundled_cards() if name.startswith(f"{task}-")], 2))


def diagnose(task: str, pair: tuple[str, str], held_out: Path, folder: Path) -> dict[str, Any]:
    """The diagnosis, with the seconds that the command took."""
    if not (folder / "seconds").exists():
        keys = [f"env={task}", f"policies=[{','.join(pair)}]", f"demonstrations={held_out}", f"run_dir={folder}"]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-P", "-m", "gpc.commands.cli", "diagnose", *keys], check=True, env=os.environ)
        write_atomically(folder / "seconds", f"{time.monotonic() - begin:.1f}\n")
    return read_json(folder / "diagnosis.json") | {"seconds": float((folder / "seconds").read_text())}


def measured() -> dict[frozenset[str], float]:
    """Gains of the winner over the best parent on report seeds, in points, by pair; of two searches that with more episodes."""
    found: dict[frozenset[str], tuple[int, float]] = {}
    for path in sorted((ROOT / "docs/results/runs").glob("*/summary.json")):
        summary = read_json(path)
        if summary["kind"] == "search" and len(summary["policies"]) == 2:
            pair, episodes = frozenset(summary["policies"]), sum(c["n_episodes"] for c in summary["candidates"])
            found[pair] = max(found.get(pair, (0, 0.0)), (episodes, summary["pc_success_gain"]))
    return {pair: gain for pair, (_, gain) in found.items()}


def line(pair: tuple[str, str], diagnosis: dict[str, Any], gain: float | None) -> str:
    errors, task = diagnosis["denoising_error"], pair[0].partition("-")[0]
    widest = max(next(iter(diagnosis["disagreement_by_sigma"].values())))
    weights = ", ".join(f"{w:.2f}" for w in errors["weights"])
    cells = [f"{task}: {' + '.join(map(short, pair))}", f"{diagnosis['seconds']:.0f}", f"{widest:.3f}", weights]
    cells += [f"{errors['pc_gain']:.1f}", "" if gain is None else f"{gain:+.1f}"]
    return f"| {' | '.join(cells)} |"


def page(found: dict[tuple[str, str], dict[str, Any]]) -> list[str]:
    gains = measured()
    known = [(d["denoising_error"]["pc_gain"], gains[frozenset(p)]) for p, d in found.items() if frozenset(p) in gains]
    test = stats.spearmanr(*zip(*known, strict=True))
    seconds = [diagnosis["seconds"] for diagnosis in found.values()]
    return [
        "# Diagnoses of all bundled pairs",
        "",
        "Written by `scripts/diagnose_pairs.py`. Predicted: the weights with the least one-step denoising error on held-out",
        "demonstrations, and how far it is below the better policy's. Measured: points of success of a search's winner over its",
        f"best parent on fresh seeds (docs/results/runs). The whole command took {min(seconds):.0f} to {max(seconds):.0f} s on "
        f"{os.cpu_count()} cores.",
        "",
        "| pair | s | largest disagreement | predicted weights | predicted gain, % | measured gain, points |",
        "|---|---|---|---|---|---|",
        *(line(pair, diagnosis, gains.get(frozenset(pair))) for pair, diagnosis in found.items()),
        "",
        f"Rank correlation (Spearman) of predicted and measured gain over {len(known)} pairs: {test.statistic:+.2f}, "
        f"p = {test.pvalue:.2g}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/diagnoses")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = {
        pair: diagnose(task, pair, args.held_out / f"{task}.zarr.zip", args.runs / "+".join(pair))
        for task in TASKS
        for pair in pairs(task)
    }
    write_atomically(args.out, "\n".join(page(found)) + "\n")


if __name__ == "__main__":
    main()
