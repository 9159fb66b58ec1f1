"""Train a bundled policy: `python scripts/train.py pusht-diffusion --data FOLDER` (the recipes are in scripts/recipes.py).

FOLDER holds the demonstrations: for PushT `pusht_v7_206ep_lowdim.npz` and, for the image policy, `pusht_cchi_v7_replay.zarr.zip`
(Chi et al. 2023, MIT); for the robosuite tasks `lift.hdf5`, `can.hdf5`, `square.hdf5` as scripts/collect.py writes them.
Interrupt it at any time: the same command resumes from the last checkpoint and ends with the same weights.

Every family is one weighted regression in the one coordinate, `weight(sigma) |denoised(x0 + sigma noise) - x0|^2`; what
differs is which sigmas are drawn and how they weigh. DDPM's noise loss weighs 1 / sigma^2, the velocity loss 1 / t^2
with t = sigma / (1 + sigma), EDM's (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipes import RECIPES
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from gpc.policies.bundled import BUNDLED, CARD, WEIGHTS, build
from gpc.policy.observation import conform
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import Karras, LinearFlow, Schedule, VariancePreserving


def windows(ends: np.ndarray, episodes: list[int], horizon: int, past: int, pad: int = 7) -> tuple[Tensor, Tensor]:
    """Return the indices of observations (n, past) and actions (n, horizon).

    The edges of an episode are repeated.
    """
    starts = np.concatenate([[0], ends[:-1]])
    observed, acted = [], []
    for episode in episodes:
        first, last = starts[episode], ends[episode] - 1
        for now in range(first, max(first, last + pad - horizon + past) + 1):
            begin = now - past + 1
            observed.append(np.clip(np.arange(begin, now + 1), first, last))
            acted.append(np.clip(np.arange(begin, begin + horizon), first, last))
    return torch.from_numpy(np.stack(observed)), torch.from_numpy(np.stack(acted))


def draw_sigma(schedule: Schedule, n: int, generator: torch.Generator) -> Tensor:
    """Draw noise levels for n samples, as the family trains.

    Uniform steps, logit-normal t (Esser et al. 2024), log-normal sigma.
    """
    if isinstance(schedule, VariancePreserving):
        return schedule.sigmas[torch.randint(len(schedule.betas), (n,), generator=generator)]
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    if isinstance(schedule, LinearFlow):
        t = torch.sigmoid(1.2 * normal + 0.2).clamp(0.001, 0.9999)
        return t / (1 - t)
    assert isinstance(schedule, Karras)
    sigma = schedule.sigma_data * torch.exp(1.3 * normal - 0.8)
    return sigma.clamp(schedule.sigma_min, schedule.sigma_max)


def loss_weight(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Return the family's weight on the squared denoising error (see the module)."""
    if isinstance(schedule, VariancePreserving):
        return sigma**-2
    if isinstance(schedule, LinearFlow):
        return ((1 + sigma) / sigma) ** 2
    assert isinstance(schedule, Karras)
    return (sigma**2 + schedule.sigma_data**2) / (sigma * schedule.sigma_data) ** 2


def shift_images(images: Tensor, generator: torch.Generator, pixels: int = 4) -> Tensor:
    """Shift each sample at random, edges repeated.

    Shape (batch, steps, height, width, 3), uint8.
    """
    size = images.shape[2]
    offset = torch.randint(-pixels, pixels + 1, (2, len(images), 1), generator=generator)
    rows, cols = (torch.arange(size) + offset).clamp(0, size - 1)
    batch = torch.arange(len(images))[:, None, None]
    return images.transpose(0, 1)[:, batch, rows[:, :, None], cols[:, None, :]].transpose(0, 1)


class Trainer:
    """Weights, their exponential average, optimiser and random state."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.recipe = args, RECIPES[name]
        inputs = self.recipe.model["inputs"]
        demonstrations = self.recipe.task.load(args.data, list(inputs))
        self.observations = {
            key: torch.from_numpy(conform(key, value, value.shape[1:], bool(inputs[key].get("image"))))
            for key, value in demonstrations.observations.items()
        }
        self.ends = demonstrations.episode_ends
        self.actions = torch.from_numpy(demonstrations.actions).float()
        self.held_out = list(self.recipe.task.held_out(len(self.ends)))
        self.trained = [e for e in range(len(self.ends)) if e not in self.held_out]
        rows = torch.cat([torch.arange(self.ends[e - 1] if e else 0, self.ends[e]) for e in self.trained])
        self.card = self.recipe.card(name, {key: value[rows] for key, value in self.observations.items()})
        self.policy = build(self.card)
        self.module = self.policy.module
        self.average = copy.deepcopy(self.module).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=args.lr, weight_decay=1e-4, betas=(0.9, 0.95))
        self.generator = torch.Generator().manual_seed(args.seed)
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.path = args.out / name / "checkpoint.pt"

    def batches(self, episodes: list[int]) -> tuple[Tensor, Tensor]:
        spec = self.policy
        return windows(self.ends, episodes, spec.actions.horizon, spec.observations.n_obs_steps)

    def loss(
        self, module: torch.nn.Module, observed: Tensor, acted: Tensor, generator: torch.Generator, augment: bool
    ) -> Tensor:
        """Return the denoising loss of one batch of windows, weighted by sigma."""
        policy = self.policy
        observation = {key: value[observed] for key, value in self.observations.items()}
        for key, value in observation.items():
            if key in policy.observations.images and augment:
                observation[key] = shift_images(value, generator)
        x0 = policy.actions.encode(self.actions[acted]).double()
        sigma = draw_sigma(policy.schedule, len(x0), generator)
        x = x0 + sigma[:, None, None] * torch.randn(x0.shape, generator=generator, dtype=torch.float64)

        def network(scaled: Tensor, label: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                return module(scaled, label, observation).float()

        denoised = NetworkDenoiser(network, policy.schedule, policy.prediction)(x, sigma)
        error = ((denoised - x0) ** 2).mean((1, 2))
        return (loss_weight(policy.schedule, sigma) * error).mean()

    def update(self, observed: Tensor, acted: Tensor) -> float:
        """Make one optimiser step with a warmed-up cosine rate."""
        begin = time.perf_counter()
        warm = min(1.0, (self.step + 1) / 300)
        rate = self.args.lr * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.args.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(observed), (self.args.batch,), generator=self.generator)
        loss = self.loss(self.module, observed[rows], acted[rows], self.generator, augment=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for old, new in zip(self.average.state_dict().values(), self.module.state_dict().values(), strict=True):
                old.lerp_(new, 1 - decay)
        self.seconds += time.perf_counter() - begin
        return float(loss.detach())

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss of the averaged weights on the held-out episodes.

        The noise is always the same.
        """
        observed, acted = self.batches(self.held_out)
        generator = torch.Generator().manual_seed(0)
        parts = zip(observed.split(512), acted.split(512), strict=True)
        total = sum(float(self.loss(self.average, o, a, generator, augment=False)) * len(o) for o, a in parts)
        return total / len(observed)

    def settings(self) -> dict[str, Any]:
        """Return the settings that a resumed run must share."""
        return {key: getattr(self.args, key) for key in ("steps", "batch", "lr", "seed", "bf16")}

    def save(self) -> None:
        """Write the checkpoint atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"module": self.module.state_dict(), "average": self.average.state_dict()}
        parts |= {"optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state()}
        parts |= {"step": self.step, "seconds": self.seconds, "losses": self.losses, "settings": self.settings()}
        torch.save(parts, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one."""
        if not self.path.exists():
            return
        parts = torch.load(self.path, weights_only=True)
        for key, value in self.settings().items():
            if (old := parts["settings"][key]) != value:
                raise SystemExit(f"{self.path} was started with --{key} {old}; use that, or delete it to start anew")
        self.module.load_state_dict(parts["module"])
        self.average.load_state_dict(parts["average"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.generator.set_state(parts["generator"])
        self.step, self.seconds, self.losses = parts["step"], parts["seconds"], parts["losses"]

    def export(self, folder: Path) -> None:
        """Write `weights.safetensors` (the average, in float16) and `card.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.average.state_dict().items()}, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its owner alone
        (folder / CARD).write_text(json.dumps(card(self), indent=1) + "\n")


def card(trainer: Trainer) -> dict[str, Any]:
    """Return the card of the trained weights."""
    args = trainer.args
    return {
        **trainer.card,
        "license": "MIT",
        "training": {
            "data": trainer.recipe.task.data,
            "episodes": len(trainer.ends),
            "held_out_episodes": trainer.held_out,
            "steps": trainer.step,
            "batch": args.batch,
            "seed": args.seed,
            "learning_rate": args.lr,
            "minutes_on_one_core": round(trainer.seconds / 60, 1),
            "parameters": sum(p.numel() for p in trainer.module.parameters()),
            "held_out_loss": trainer.losses[-1] if trainer.losses else None,
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Train, with a checkpoint every few hundred steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="run the network's products in bfloat16")
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, default=Path("runs/train"), help="where checkpoints go")
    parser.add_argument("--export", type=Path, default=BUNDLED, help="where the finished policy goes")
    args = parser.parse_args(argv)
    trainer = Trainer(args.name, args)
    trainer.resume()
    observed, acted = trainer.batches(trainer.trained)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(args.name, total=args.steps, completed=trainer.step)
        while trainer.step < args.steps:
            trainer.update(observed, acted)
            progress.advance(bar)
            if trainer.step % args.every == 0 or trainer.step == args.steps:
                trainer.losses.append(trainer.validate())
                trainer.save()
                progress.update(bar, description=f"{args.name} held-out loss {trainer.losses[-1]:.4f}")
                progress.console.print(
                    f"step {trainer.step}: held-out loss {trainer.losses[-1]:.4f}, {trainer.seconds / 60:.1f} min"
                )
    trainer.export(args.export / args.name)


if __name__ == "__main__":
    main()
