"""Train a small diffusion policy by robomimic's own trainer: `python scripts/train_robomimic.py lift --data FOLDER`.

FOLDER holds `lift.hdf5`, as scripts/collect.py writes it. Interrupt it at any time: the same command resumes from robomimic's last
checkpoint (which robomimic unpickles: keep --out your own). The finished policy is robomimic's checkpoint with the averaged
weights only, as `robomimic:FILE` reads it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from recipes import device
from robomimic.config import config_factory
from robomimic.scripts.train import train

from gpc.policies.bundled import BUNDLED, CARD
from gpc.policies.checkpoint import read
from gpc.policies.from_robomimic import unet

SIZE = {"down_dims": [88, 176], "diffusion_step_embed_dim": 128}
EPOCH = 100  # gradient steps between robomimic's checkpoints


def configure(args: argparse.Namespace) -> Any:
    """Return robomimic's configuration: its defaults, low-dimensional, no rollouts."""
    config = config_factory("diffusion_policy")
    with config.unlocked():
        config.experiment.name = f"{args.task}-diffusion"
        config.experiment.validate = False
        config.experiment.rollout.enabled = config.experiment.render_video = False
        config.experiment.save.enabled = config.experiment.logging.log_tb = False
        config.experiment.epoch_every_n_steps = EPOCH
        config.train.data = [{"path": str(args.data.resolve() / f"{args.task}.hdf5")}]
        config.train.output_dir = str(args.out.resolve())
        config.train.hdf5_filter_key = "train"
        config.train.hdf5_normalize_obs = True
        config.train.cuda = args.device.type == "cuda"
        config.train.batch_size = args.batch
        config.train.num_epochs = args.steps // EPOCH
        config.train.seed = args.seed
        config.algo.optim_params.policy.learning_rate.initial = args.lr
        config.algo.unet.down_dims = SIZE["down_dims"]
        config.algo.unet.diffusion_step_embed_dim = SIZE["diffusion_step_embed_dim"]
    return config


def export(checkpoint: Path, folder: Path, args: argparse.Namespace) -> None:
    """Write robomimic's checkpoint with the averaged weights alone, and the card."""
    content = read(checkpoint)
    average = content["model"]["ema"]
    content["model"] = {"nets": average, "ema": average}  # one storage: the file holds them once
    config = json.loads(content["config"])
    config["train"] |= {"data": [{"path": f"{args.task}.hdf5"}], "output_dir": "."}  # not where it was trained
    content["config"] = json.dumps(config)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / f"{folder.name}.pth")
    card = {
        "name": folder.name,
        "summary": "robomimic's diffusion policy: DDPM noise prediction, 1D U-Net, low-dimensional observations",
        "checkpoint": f"robomimic:{folder.name}.pth",
        "model": {"inputs": {key: {"shape": shape} for key, shape in content["shape_metadata"]["all_shapes"].items()}},
        "license": "MIT",
        "training": {
            "data": f"{args.task}.hdf5 of scripts/collect.py, its filter key 'train'",
            "steps": args.steps, "batch": args.batch, "seed": args.seed, "learning_rate": args.lr,
            "parameters": sum(value.numel() for value in average.values()),
        },
    }  # fmt: skip
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["lift", "can", "square"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=device, default="auto", help="auto (a card if there is one), cpu, cuda, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/robomimic"), help="where robomimic's own files go")
    parser.add_argument("--export", type=Path, default=BUNDLED, help="where the finished policy goes")
    args = parser.parse_args()
    config = configure(args)
    run = args.out / config.experiment.name
    checkpoints = sorted(run.glob("*/last.pth"))
    if run.exists() and not checkpoints:
        shutil.rmtree(run)  # a run without a checkpoint has nothing to keep
    with unet(**SIZE):
        train(config, args.device, resume=bool(checkpoints))
    export(max(run.glob("*/last.pth")), args.export / config.experiment.name, args)


if __name__ == "__main__":
    main()
