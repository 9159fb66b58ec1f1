"""Train a small LeRobot diffusion policy on the PushT demonstrations, by LeRobot's own `lerobot-train`.

    python scripts/train_lerobot.py --data FOLDER --out FOLDER

The demonstrations become a LeRobotDataset (agent position, keypoints, actions; the 16 held-out episodes left out), then
`lerobot-train` does the rest. Interrupt it at any time: the same command resumes from LeRobot's last checkpoint. The checkpoint
is OUT/run/checkpoints/last/pretrained_model, `lerobot-pusht` of docs/results/pusht.md. About 75 minutes on two cores.
`--device` is LeRobot's `policy.device`; a training that resumes keeps the one of its start.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from recipes import HELD_OUT, device, load_pusht

from gpc.envs.pusht import INSTRUCTION

NORMALISERS = '{"VISUAL":"MEAN_STD","STATE":"MIN_MAX","ENV":"MIN_MAX","ACTION":"MIN_MAX"}'  # the default leaves ENV raw
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "observation.environment_state": {"dtype": "float32", "shape": (16,), "names": None},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}


def convert(data: Path, root: Path) -> None:
    """Write the demonstrations as a LeRobotDataset of low-dimensional observations."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    demonstrations = load_pusht(data, ["agent_pos", "keypoints"])
    ends = demonstrations.episode_ends
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    dataset = LeRobotDataset.create("gpc/pusht", fps=10, features=FEATURES, root=part, use_videos=False)
    for episode, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        if episode in HELD_OUT:
            continue
        for i in range(begin, end):
            dataset.add_frame(
                {
                    "observation.state": demonstrations.observations["agent_pos"][i].astype(np.float32),
                    "observation.environment_state": demonstrations.observations["keypoints"][i].astype(np.float32),
                    "action": demonstrations.actions[i].astype(np.float32),
                    "task": INSTRUCTION,
                }
            )
        dataset.save_episode()
    dataset.finalize()
    part.rename(root)


def arguments(root: Path, run: Path, steps: int, device: torch.device) -> list[str]:
    """Return the arguments of `lerobot-train`, to begin or to resume."""
    last = run / "checkpoints/last/pretrained_model/train_config.json"
    if last.exists():
        return [f"--config_path={last}", "--resume=true"]
    shutil.rmtree(run, ignore_errors=True)  # a run without a checkpoint has nothing to keep
    return [
        "--dataset.repo_id=gpc/pusht", f"--dataset.root={root}", f"--output_dir={run}",
        "--policy.type=diffusion", "--policy.push_to_hub=false", f"--policy.device={device}",
        f"--policy.normalization_mapping={NORMALISERS}",
        "--policy.down_dims=[64,128]", "--policy.diffusion_step_embed_dim=64", "--policy.optimizer_lr=5e-4",
        "--batch_size=64", "--num_workers=1", f"--steps={steps}", "--save_freq=1000", "--log_freq=200",
        "--eval_freq=0", "--seed=0", "--wandb.enable=false",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="folder for the dataset and the run")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--device", type=device, default="auto", help="auto (a card if there is one), cpu, cuda, ...")
    args = parser.parse_args()
    root, run = args.out / "dataset", args.out / "run"
    if not root.exists():
        convert(args.data, root)
    command = Path(sys.executable).with_name("lerobot-train")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    raise SystemExit(
        subprocess.call([command, *arguments(root, run, args.steps, args.device)], env=os.environ | offline)
    )


if __name__ == "__main__":
    main()
