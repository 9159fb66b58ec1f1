"""Compose a policy here with one in another virtual environment, which has another torch: `python scripts/remote_member.py`.

Compares the chunks of local + remote with those of both here, then kills the server amid a chunk. Downloads a torch.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from servers import process_of
from torch import Tensor

import gpc
from gpc.errors import RunError
from gpc.inference.chunk import sample_actions
from gpc.inference.settings import Sampling
from gpc.policy.spec import Policy
from gpc.score.denoiser import Denoiser

ROOT = Path(__file__).parents[1]
HERE, THERE, WEIGHTS = "pusht-diffusion", "pusht-flow", [0.4, 0.6]
VERSION = "import torch; print(torch.__version__)"


@dataclass(frozen=True)
class Calling:
    """A denoiser that prints a line before each call."""

    denoiser: Denoiser
    before: Callable[[], None]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.before()
        return self.denoiser(x, sigma)


def environment(folder: Path, version: str) -> str:
    """Return the python of a fresh virtual environment with gpc and this torch."""
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin/python"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    calls = [f"torch=={version}", "-e", f"{ROOT}[serve]"]
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *calls], check=True)
    return str(python)


def chunks(policy: Policy, rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shapes = policy.observations.shapes
    observation = {key: rng.uniform(50, 450, (rows, 2, *shape)) for key, shape in sorted(shapes.items())}
    return sample_actions(policy, Sampling(), observation, np.arange(rows), np.zeros(rows, np.int64))


def compare(address: str) -> None:
    here = [gpc.load_policy(HERE), gpc.load_policy(THERE)]
    mixed = gpc.compose([here[0], gpc.load_policy(f"remote:{address}")], WEIGHTS)
    for rows in (1, 16, 64):
        expected = chunks(gpc.compose(here, WEIGHTS), rows)
        off = np.abs(chunks(mixed, rows) - expected).max()
        print(f"{rows} chunks, actions to {np.abs(expected).max():.0f}: largest difference {off:.3g}")


def kill(server: subprocess.Popen[str], address: str) -> None:
    """Kill the server before the fourth of the sampler's calls."""
    calls = [0]

    def count() -> None:
        calls[0] += 1
        if calls[0] == 4:
            server.kill()
            server.wait()

    policy = gpc.load_policy(f"remote:{address}")
    observation = {key: torch.zeros(1, 2, *shape) for key, shape in policy.observations.shapes.items()}
    denoiser = Calling(policy.condition(observation), count)
    x, began = torch.ones(1, policy.actions.horizon, policy.actions.dim, dtype=torch.float64), time.perf_counter()
    try:
        for sigma in Sampling().sigmas(policy.levels):
            x = denoiser(x, sigma)
    except RunError as error:
        print(
            f"killed before call {calls[0]}, {1000 * (time.perf_counter() - began):.0f} ms after the chunk began: {error}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="2.9.1", help="the version there")
    version = parser.parse_args().torch
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        python = environment(Path(folder) / "venv", version)
        there = subprocess.run([python, "-P", "-c", VERSION], check=True, capture_output=True, text=True).stdout.strip()
        print(f"torch {torch.__version__} here, {there} there (installed in {time.perf_counter() - began:.0f} s)")
        torch.set_num_threads(1)
        keys = [f"policies=[{THERE}]", "port=0", "reproducible=true"]
        with process_of(python, "-P", "-m", "gpc.commands.cli", "serve", *keys) as (server, address):
            compare(address)
            kill(server, address)


if __name__ == "__main__":
    main()
