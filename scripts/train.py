"""Train a bundled policy: `python scripts/train.py pusht-diffusion --data FOLDER` (the recipes are in scripts/recipes.py).

FOLDER holds the demonstrations: for PushT `pusht_v7_206ep_lowdim.npz` and, for the image policy, `pusht_cchi_v7_replay.zarr.zip`
(Chi et al. 2023, MIT); for the robosuite tasks `lift.hdf5`, `can.hdf5`, `square.hdf5` as scripts/collect.py writes them.
Interrupt it at any time: the same command resumes from the last checkpoint and ends with the same weights.
`--demonstrations 2/3` trains on the second of three disjoint parts, for parents from different data: every third demonstration,
those held out excepted. The policy is then `pusht-diffusion-2of3`.

On a card (`--device cuda`) the data lie there, and a whole step is one recorded graph; what is random is drawn on the host, so that
every device trains on the same batches and noise. `--device` may change when a training resumes.

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
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recipes import RECIPES, device
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gpc.inference.device import Card, Device, prepare
from gpc.policies.bundled import BUNDLED, CARD, WEIGHTS, build
from gpc.policy.observation import conform
from gpc.score.denoiser import NetworkDenoiser
from gpc.score.noise import Karras, LinearFlow, Schedule, VariancePreserving

SHIFT = 4  # pixels by which pictures are moved at most
LARGEST = 0.01  # difference between a recorded step and the step itself, relative to what it changes


def prepared(device: torch.device) -> torch.device:
    """Return the device of a training, after setting what holds for the process."""
    if device.type == "mps":
        raise SystemExit("--device mps has no float64, in which noise is added; use --device cpu")
    prepare(Device(str(device)))
    if device.index is not None:
        torch.accelerator.set_device_index(device.index)
    return device


def is_recorded(device: torch.device) -> bool:
    """Return whether steps are recorded there."""
    return device.type == "cuda"


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


def shift_images(images: Tensor, offset: Tensor) -> Tensor:
    """Shift each sample by its offset, edges repeated.

    Args:
        images: (batch, steps, height, width, 3), uint8, of equal height and width.
        offset: (2, batch, 1), in rows and columns.
    """
    size = images.shape[2]
    rows, cols = (torch.arange(size, device=images.device) + offset).clamp(0, size - 1)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    return images.transpose(0, 1)[:, batch, rows[:, :, None], cols[:, None, :]].transpose(0, 1)


def schedule_on(schedule: Schedule, device: torch.device) -> Schedule:
    """Return a schedule with its table on a device: recorded steps copy nothing."""
    there = copy.copy(schedule)
    if isinstance(there, VariancePreserving):
        object.__setattr__(there, "sigmas", there.sigmas.to(device))
    return there


class Part(NamedTuple):
    """One of several disjoint parts of the demonstrations.

    Attributes:
        number: Number of the part, from 1.
        count: Number of parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part as `2/3`."""
        number, count = map(int, text.split("/"))
        if not 1 <= number <= count:
            raise ValueError(text)
        return cls(number, count)

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.number}/{self.count}"

    @property
    def suffix(self) -> str:
        """End of a policy's name."""
        return f"-{self.number}of{self.count}" if self.count > 1 else ""

    def of(self, episodes: Sequence[int]) -> list[int]:
        """Return the episodes of the part."""
        return list(episodes[self.number - 1 :: self.count])


class Draw(NamedTuple):
    """What is random in a step.

    Attributes:
        rows: Windows of the batch (batch,).
        offsets: For each camera, pixels by which its pictures are shifted (2, batch, 1); empty in validation.
        sigma: Noise levels (batch,), float64.
        noise: (batch, horizon, action), float64.
    """

    rows: Tensor
    offsets: Mapping[str, Tensor]
    sigma: Tensor
    noise: Tensor


class Trainer:
    """Weights, their exponential average, optimiser and random state."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.recipe, self.device = args, RECIPES[name], prepared(args.device)
        inputs = self.recipe.model["inputs"]
        demonstrations = self.recipe.task.load(args.data, list(inputs))
        self.observations = {
            key: torch.from_numpy(conform(key, value, value.shape[1:], bool(inputs[key].get("image"))))
            for key, value in demonstrations.observations.items()
        }
        self.ends = demonstrations.episode_ends
        self.held_out = list(self.recipe.task.held_out(len(self.ends)))
        self.trained = args.demonstrations.of([e for e in range(len(self.ends)) if e not in self.held_out])
        rows = torch.cat([torch.arange(self.ends[e - 1] if e else 0, self.ends[e]) for e in self.trained])
        self.name = name + args.demonstrations.suffix
        self.card = self.recipe.card(self.name, {key: value[rows] for key, value in self.observations.items()})
        self.policy = build(self.card)
        self.schedule = schedule_on(self.policy.schedule, self.device)
        self.observations = {key: value.to(self.device) for key, value in self.observations.items()}
        self.actions = self.policy.actions.encode(torch.from_numpy(demonstrations.actions).float()).to(self.device)
        self.module = self.policy.module.to(self.device)
        self.average = copy.deepcopy(self.module).requires_grad_(False)
        decay = {"weight_decay": 1e-4, "betas": (0.9, 0.95), "capturable": is_recorded(self.device)}
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=args.lr, **decay)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.recorded: RecordedStep | None = None
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.path = args.out / self.name / "checkpoint.pt"

    def batches(self, episodes: list[int]) -> tuple[Tensor, Tensor]:
        """Return the windows of episodes."""
        spec = self.policy
        observed, acted = windows(self.ends, episodes, spec.actions.horizon, spec.observations.n_obs_steps)
        return observed.to(self.device), acted.to(self.device)

    def draw(self, rows: Tensor, generator: torch.Generator, augment: bool) -> Draw:
        """Draw what is random for windows, on the host."""
        n, actions = len(rows), self.policy.actions
        offsets = {
            key: torch.randint(-SHIFT, SHIFT + 1, (2, n, 1), generator=generator)
            for key in self.observations
            if augment and key in self.policy.observations.images
        }
        sigma = draw_sigma(self.policy.schedule, n, generator)
        return Draw(rows, offsets, sigma, torch.randn(n, *actions.shape, generator=generator, dtype=torch.float64))

    def loss(self, module: torch.nn.Module, observed: Tensor, acted: Tensor, draw: Draw) -> Tensor:
        """Return the denoising loss of one batch of windows, weighted by sigma."""
        observed, acted, sigma = observed[draw.rows], acted[draw.rows], draw.sigma
        observation = {key: value[observed] for key, value in self.observations.items()}
        observation |= {key: shift_images(observation[key], offset) for key, offset in draw.offsets.items()}
        x0 = self.actions[acted].double()
        x = x0 + sigma[:, None, None] * draw.noise

        def network(scaled: Tensor, label: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
                return module(scaled, label, observation).float()

        denoised = NetworkDenoiser(network, self.schedule, self.policy.prediction)(x, sigma)
        error = ((denoised - x0) ** 2).mean((1, 2))
        return (loss_weight(self.policy.schedule, sigma) * error).mean()

    def update(self, observed: Tensor, acted: Tensor) -> None:
        """Make one optimiser step with a warmed-up cosine rate."""
        begin = time.perf_counter()
        warm = min(1.0, (self.step + 1) / 300)
        rate = self.args.lr * warm * 0.5 * (1 + math.cos(math.pi * self.step / self.args.steps))
        rows = torch.randint(len(observed), (self.args.batch,), generator=self.generator)
        draw = self.draw(rows, self.generator, augment=True)
        self.step += 1
        keep = 1 - min(0.999, (1 + self.step) / (10 + self.step))
        if is_recorded(self.device):
            self.recorded = self.recorded or RecordedStep(self, observed, acted, draw, rate, keep)
            self.recorded(draw, rate, keep)
        else:
            self.make_step(observed, acted, tree_map(lambda value: value.to(self.device), draw), rate, keep)
        self.seconds += time.perf_counter() - begin

    def make_step(
        self, observed: Tensor, acted: Tensor, draw: Draw, rate: float | Tensor, keep: float | Tensor
    ) -> Tensor:
        """Make one step: loss, gradient, clipping, AdamW, exponential average.

        Args:
            observed: Windows of observations, see `windows`.
            acted: Windows of actions.
            draw: What is random.
            rate: Learning rate.
            keep: Weight of the new weights in their average.

        Returns:
            The loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.loss(self.module, observed, acted, draw)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.average.state_dict().values(), self.module.state_dict().values(), strict=True):
                old.lerp_(new, keep)
        return loss.detach()

    def tensors(self) -> list[Tensor]:
        """Return what a step changes, the optimiser's state at the end."""
        weights = [*self.module.state_dict().values(), *self.average.state_dict().values()]
        return weights + [value for state in self.optimizer.state.values() for value in state.values()]

    @torch.no_grad()
    def validate(self) -> float:
        """Return the loss of the averaged weights on the held-out episodes.

        The noise is always the same.
        """
        observed, acted = self.batches(self.held_out)
        generator = torch.Generator().manual_seed(0)
        total = 0.0
        for rows in torch.arange(len(observed)).split(512):
            draw = tree_map(lambda value: value.to(self.device), self.draw(rows, generator, augment=False))
            total += float(self.loss(self.average, observed, acted, draw)) * len(rows)
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
        parts = torch.load(self.path, weights_only=True, map_location="cpu")
        for key, value in self.settings().items():
            if (old := parts["settings"][key]) != value:
                raise SystemExit(f"{self.path} was started with --{key} {old}; use that, or delete it to start anew")
        for group in parts["optimizer"]["param_groups"]:
            group["capturable"] = is_recorded(self.device)  # of this device, not of the checkpoint's
        self.module.load_state_dict(parts["module"])
        self.average.load_state_dict(parts["average"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.generator.set_state(parts["generator"])
        self.step, self.seconds, self.losses = parts["step"], parts["seconds"], parts["losses"]

    def export(self, folder: Path) -> None:
        """Write `weights.safetensors` (the average, in float16) and `card.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: value.half().contiguous().cpu() for key, value in self.average.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors writes for its owner alone
        (folder / CARD).write_text(json.dumps(card(self), indent=1) + "\n")


class RecordedStep:
    """`Trainer.make_step` as one graph of a card, which reads its inputs from one place in memory.

    Raises:
        SystemExit: If it changes the weights differently.
    """

    def __init__(self, trainer: Trainer, observed: Tensor, acted: Tensor, draw: Draw, rate: float, keep: float) -> None:
        device, before = trainer.device, [value.clone() for value in trainer.tensors()]
        self.inputs = tree_map(lambda value: torch.as_tensor(value).to(device, copy=True), (draw, rate, keep))

        def step() -> Tensor:
            return trainer.make_step(observed, acted, *self.inputs)

        torch.accelerator.synchronize()
        with warnings.catch_warnings(action="ignore"):  # AdamW would rather be recorded
            self.run = Card(device).record(step)
            torch.accelerator.synchronize()
            changes = [change_of(trainer, make, before) for make in (step, self.run)]
        difference = float((changes[0] - changes[1]).norm() / changes[0].norm())
        if not difference <= LARGEST:
            raise SystemExit(f"the recorded step differs from the step itself by {difference:.2g}; use --device cpu")

    def __call__(self, draw: Draw, rate: float, keep: float) -> None:
        """Make a step."""
        for here, value in zip(tree_leaves(self.inputs), tree_leaves((draw, rate, keep)), strict=True):
            here.copy_(torch.as_tensor(value))
        self.run()


def change_of(trainer: Trainer, make_step: Callable[[], Tensor], before: Sequence[Tensor]) -> Tensor:
    """Return how a step changes the weights and their average, and undo it."""
    restore(trainer.tensors(), before)
    make_step()
    weights = [*trainer.module.parameters(), *trainer.average.parameters()]
    after = torch.cat([value.detach().flatten().double() for value in weights])
    restore(trainer.tensors(), before)
    return after - torch.cat([value.detach().flatten().double() for value in weights])


def restore(tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Copy earlier values back; what was not there yet, of the optimiser, begins at 0."""
    with torch.no_grad():
        for i, value in enumerate(tensors):
            value.copy_(before[i] if i < len(before) else torch.zeros_like(value))


def card(trainer: Trainer) -> dict[str, Any]:
    """Return the card of the trained weights."""
    args = trainer.args
    place = "one_card" if is_recorded(trainer.device) else "one_core"
    return {
        **trainer.card,
        "license": "MIT",
        "training": {
            "data": trainer.recipe.task.data,
            "episodes": len(trainer.ends),
            "trained_episodes": len(trainer.trained),
            "held_out_episodes": trainer.held_out,
            **({"demonstrations": str(args.demonstrations)} if args.demonstrations.count > 1 else {}),
            "steps": trainer.step,
            "batch": args.batch,
            "seed": args.seed,
            "learning_rate": args.lr,
            f"minutes_on_{place}": round(trainer.seconds / 60, 1),
            "parameters": sum(p.numel() for p in trainer.module.parameters()),
            "held_out_loss": trainer.losses[-1] if trainer.losses else None,
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Train, with a checkpoint every few hundred steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the demonstrations")
    parser.add_argument(
        "--demonstrations", type=Part.parse, default=Part(1, 1), metavar="K/N", help="the K-th of N disjoint parts"
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="run the network's products in bfloat16")
    parser.add_argument(
        "--device", type=device, default="auto", help="auto (a card if there is one), cpu, cuda, cuda:1"
    )
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
        bar = progress.add_task(trainer.name, total=args.steps, completed=trainer.step)
        while trainer.step < args.steps:
            trainer.update(observed, acted)
            progress.advance(bar)
            if trainer.step % args.every == 0 or trainer.step == args.steps:
                trainer.losses.append(trainer.validate())
                trainer.save()
                progress.update(bar, description=f"{trainer.name} held-out loss {trainer.losses[-1]:.4f}")
                progress.console.print(
                    f"step {trainer.step}: held-out loss {trainer.losses[-1]:.4f}, {trainer.seconds / 60:.1f} min"
                )
    trainer.export(args.export / trainer.name)


if __name__ == "__main__":
    main()
