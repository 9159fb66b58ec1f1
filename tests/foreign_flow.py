"""A flow-matching network as another codebase trains it, and its training: `python tests/foreign_flow.py DATA.npz`.

Nothing of gpc: time runs from noise (tau = 0) to data (tau = 1), the network predicts x0 - noise, actions are normalised by
mean and standard deviation, a chunk has 8 steps and begins now. DATA.npz is `pusht_v7_206ep_lowdim.npz` (scripts/train.py);
the weights are tests/data/foreign-flow.pt.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

HORIZON, HISTORY, WIDTH = 8, 2, 192
HELD_OUT = {5, 17, 29, 41, 53, 66, 78, 90, 102, 114, 127, 139, 151, 163, 175, 188}  # tests/data/pusht-held-out.zarr.zip


class FlowNetwork(nn.Module):
    """velocity(noisy (batch, 8, 2), tau (batch,), state (batch, 2, 5)) -> (batch, 8, 2), an MLP with residual blocks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))
        self.register_buffer("frequencies", 2.0 ** torch.arange(-2, 6) * torch.pi)
        self.enter = nn.Linear(HORIZON * 2 + HISTORY * 6 + 16, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Mish(), nn.Linear(WIDTH, WIDTH))
            for _ in range(3)
        )
        self.leave = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HORIZON * 2))

    def forward(self, noisy, tau, state):
        places, angle = state[..., :4] / 256 - 1, state[..., 4:]
        seen = torch.cat([places, angle.cos(), angle.sin()], -1).flatten(1)
        phase = tau[:, None] * self.frequencies
        h = self.enter(torch.cat([noisy.flatten(1), seen, phase.cos(), phase.sin()], 1))
        for block in self.blocks:
            h = h + block(h)
        return self.leave(h).reshape(noisy.shape)


def windows(data):
    """All chunks (n, 8, 2) and what was seen before them (n, 2, 5), padded at the ends of an episode."""
    ends = data["episode_ends"]
    chunks, seen = [], []
    for episode, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        for now in range(begin, end if episode not in HELD_OUT else begin):
            chunks.append(np.arange(now, now + HORIZON).clip(begin, end - 1))
            seen.append(np.arange(now - HISTORY + 1, now + 1).clip(begin, end - 1))
    return torch.from_numpy(data["action"][np.stack(chunks)]), torch.from_numpy(data["state"][np.stack(seen)])


def train(data, steps, batch=256):
    torch.manual_seed(0)
    chunks, seen = windows(data)
    network = FlowNetwork()
    network.mean, network.std = chunks.mean((0, 1)), chunks.std((0, 1))
    chunks = (chunks - network.mean) / network.std
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(chunks), (batch,))
        clean, tau = chunks[rows], torch.rand(batch)
        noise = torch.randn_like(clean)
        noisy = tau[:, None, None] * clean + (1 - tau[:, None, None]) * noise
        loss = (network(noisy, tau, seen[rows]) - (clean - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), max(2e-3, 1 / (step + 1)))
        if step % 1000 == 0:
            print(step, loss.item(), flush=True)
    return average


if __name__ == "__main__":
    with np.load(sys.argv[1]) as arrays:
        content = {key: arrays[key] for key in arrays}
    trained = train(content, int(sys.argv[2]) if len(sys.argv) > 2 else 60_000)
    torch.save(
        trained.half().state_dict(),
        Path(sys.argv[3] if len(sys.argv) > 3 else Path(__file__).parent / "data/foreign-flow.pt"),
    )
