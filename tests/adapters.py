"""A small policy of each adapter, and chunks of policies on a device: for tests/test_gpu.py and scripts/bench_gpu.py.

What a policy needs is imported when it is made, since a machine with a card may lack it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

import gpc
from gpc.inference.chunk import sample_chunk
from gpc.inference.device import Device
from gpc.inference.placement import place
from gpc.inference.settings import Sampling
from gpc.policy.observation import TASK
from gpc.policy.spec import Policy
from gpc.score.keyed_noise import keyed_noise

DATA = Path(__file__).parent / "data"


def beso(folder: Path) -> Policy:
    from beso_checkpoints import save

    golden = json.loads((DATA / "beso.json").read_text())
    return gpc.load_policy(f"beso:{save(folder / 'beso', 'push', golden['push'])}")


def diffusion_policy(case: str, folder: Path) -> Policy:
    from diffusion_policy_checkpoints import payload, save

    return gpc.load_policy(f"diffusion_policy:{save(payload(case), folder / 'checkpoint.ckpt')}")


def lerobot(folder: Path) -> Policy:
    from lerobot_checkpoints import save

    return gpc.load_policy(f"lerobot:{save(folder / 'lerobot')[0]}")


def smolvla(folder: Path) -> Policy:
    from lerobot_checkpoints import save_smolvla

    return gpc.load_policy(f"lerobot:{save_smolvla(folder / 'smolvla')[0]}")


def xvla(folder: Path) -> Policy:
    from lerobot_checkpoints import save_xvla

    return gpc.load_policy(f"lerobot:{save_xvla(folder / 'xvla')[0]}")


ADAPTERS: Mapping[str, Callable[[Path], Policy]] = {
    "bundled, U-Net": lambda folder: gpc.load_policy("pusht-diffusion"),
    "bundled, transformer": lambda folder: gpc.load_policy("pusht-flow"),
    "bundled, Karras": lambda folder: gpc.load_policy("pusht-beso"),
    "bundled, pictures": lambda folder: gpc.load_policy("pusht-image"),
    "BESO": beso,
    "Diffusion Policy, U-Net": lambda folder: diffusion_policy("unet", folder),
    "Diffusion Policy, transformer": lambda folder: diffusion_policy("causal transformer", folder),
    "DP3": lambda folder: diffusion_policy("dp3", folder),
    "robomimic": lambda folder: gpc.load_policy("lift-diffusion"),
    "LeRobot, diffusion": lerobot,
    "LeRobot, SmolVLA": smolvla,
    "LeRobot, X-VLA": xvla,
}


def observe(policy: Policy, rows: int) -> dict[str, np.ndarray]:
    """Random observations (rows, n_obs_steps, *shape)."""
    rng, found = np.random.default_rng(0), {}
    for key, shape in policy.observations.shapes.items():
        size = (rows, policy.observations.n_obs_steps, *shape)
        if key == TASK:
            found[key] = np.tile(gpc.policy.observation.write_text("push the T"), (*size[:2], 1))
        elif key in policy.observations.images:
            found[key] = rng.integers(0, 256, size, np.uint8)
        else:
            found[key] = rng.uniform(0, 512, size).astype(np.float32) if "pusht" in policy.name else rng.random(size)
    return found


def chunk(
    policy: Policy,
    device: Device,
    rows: np.ndarray | int = 16,
    sampling: Sampling = Sampling(steps=4),
    reproducible: bool = True,
) -> torch.Tensor:
    """Normalised chunks of the rows of 64 observations; a row's noise is its own."""
    rows = np.arange(rows) if isinstance(rows, int) else rows
    observation = {key: value[rows] for key, value in observe(policy, 64).items()}
    noise = keyed_noise(rows, np.zeros_like(rows), sampling.n_noise_draws(policy), policy.actions.shape)
    there = place(policy, device, reproducible)
    return sample_chunk(there, there.observations.read(observation), noise, sampling)
