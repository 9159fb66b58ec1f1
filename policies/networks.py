"""The networks of the bundled policies.

All of them map (x (batch, horizon, action), label (batch,), condition (batch, condition_dim)) to the shape of x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpc.errors import InputError

KEYPOINTS, FEATURES = 32, 64  # of an image; of a point cloud


class LabelEmbedding(nn.Module):
    """Sinusoidal features of `scale * label`, then a small MLP."""

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        exponents = torch.arange(width // 2) / (width // 2 - 1)
        self.register_buffer("frequencies", scale * torch.exp(-math.log(10_000) * exponents), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, label: Tensor) -> Tensor:
        """Embed labels."""
        angle = label.to(self.frequencies.dtype)[:, None] * self.frequencies
        out: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], -1))
        return out


class ResidualBlock(nn.Module):
    """Two convolutions over time with FiLM from the condition (Perez et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, condition: int, kernel: int, groups: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs)
        )
        self.second = nn.Sequential(
            nn.Conv1d(outputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs)
        )
        self.film = nn.Linear(condition, 2 * outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (batch, inputs, time), (batch, condition) to (batch, outputs, time)."""
        scale, shift = self.film(condition).unsqueeze(-1).chunk(2, dim=1)
        hidden = F.silu(self.first(x)) * (1 + scale) + shift
        out: Tensor = F.silu(self.second(hidden)) + self.skip(x)
        return out


class UNet(nn.Module):
    """U-Net over time with FiLM (Janner et al. 2022; Chi et al. 2023)."""

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        widths: Sequence[int] = (96, 192),
        embedding: int = 128,
        kernel: int = 5,
        label_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = LabelEmbedding(embedding, label_scale)
        self.condition = nn.Sequential(nn.Linear(embedding + condition_dim, 2 * embedding), nn.SiLU())
        dim = 2 * embedding
        pairs = list(zip((action_dim, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(self._pair(a, b, dim, kernel) for a, b in pairs)
        self.shrink = nn.ModuleList(nn.Conv1d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.middle = self._pair(widths[-1], widths[-1], dim, kernel)
        self.up = nn.ModuleList(self._pair(2 * b, a, dim, kernel) for a, b in reversed(pairs[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in reversed(pairs[1:]))
        self.head = nn.Sequential(
            nn.Conv1d(widths[0], widths[0], kernel, padding=kernel // 2),
            nn.GroupNorm(8, widths[0]),
            nn.SiLU(),
            nn.Conv1d(widths[0], action_dim, 1),
        )

    @staticmethod
    def _pair(inputs: int, outputs: int, condition: int, kernel: int) -> nn.ModuleList:
        first = ResidualBlock(inputs, outputs, condition, kernel)
        return nn.ModuleList([first, ResidualBlock(outputs, outputs, condition, kernel)])

    @staticmethod
    def _run(blocks: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
        for block in blocks.children():
            h = block(h, condition)
        return h

    def forward(self, x: Tensor, label: Tensor, condition: Tensor) -> Tensor:
        """Predict from x, labels and conditions.

        Raises:
            InputError: If the horizon is no multiple of 2 ** (len(widths) - 1).
        """
        if x.shape[1] % 2 ** len(self.shrink):
            raise InputError(
                f"a U-Net of {len(self.down)} widths needs a horizon divisible by {2 ** len(self.shrink)}, not {x.shape[1]}"
            )
        c = self.condition(torch.cat([self.embedding(label), condition], -1))
        h, skips = x.transpose(1, 2), []
        for level, blocks in enumerate(self.down):
            h = self._run(blocks, h, c)
            skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self._run(self.middle, h, c)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            h = grow(self._run(blocks, torch.cat([h, skips.pop()], 1), c))
        out: Tensor = self.head(h)
        return out.transpose(1, 2)


class AdaptiveBlock(nn.Module):
    """Transformer block with adaLN-zero conditioning (Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"a transformer of width {width} has no {heads} heads: they must divide it")
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (batch, time, width), (batch, width) to (batch, time, width)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        h = self.norms[0](x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Plain products: at 16 tokens torch's fused CPU attention takes ten times as long backward.
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.out(attended)
        h = self.norms[1](x) * (1 + scale2) + shift2
        out: Tensor = x + gate2 * self.mlp(h)
        return out


class Transformer(nn.Module):
    """Transformer over the chunk's time steps, conditioned by adaLN."""

    def __init__(
        self,
        action_dim: int,
        condition_dim: int,
        horizon: int,
        width: int = 160,
        depth: int = 5,
        heads: int = 5,
        label_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding = LabelEmbedding(width, label_scale)
        self.condition = nn.Sequential(nn.Linear(condition_dim, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.tokens = nn.Linear(action_dim, width)
        self.position = nn.Parameter(nn.init.normal_(torch.empty(horizon, width), std=0.02))
        self.blocks = nn.ModuleList(AdaptiveBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, label: Tensor, condition: Tensor) -> Tensor:
        """Predict from x, labels and conditions."""
        c = F.silu(self.embedding(label) + self.condition(condition))
        h = self.tokens(x) + self.position
        for block in self.blocks:
            h = block(h, c)
        out: Tensor = self.head(self.norm(h))
        return out


class ImageEncoder(nn.Module):
    """A small strided CNN with spatial soft-argmax (Levine et al. 2016).

    It maps (n, height, width, 3) uint8 to (n, features).
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 96), keypoints: int = KEYPOINTS) -> None:
        super().__init__()
        first, second, third = channels
        self.layers = nn.Sequential(
            nn.Conv2d(3, first, 8, stride=4, padding=2),
            nn.GroupNorm(8, first),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(8, second),
            nn.SiLU(),
            nn.Conv2d(second, third, 3, padding=1),
            nn.GroupNorm(8, third),
            nn.SiLU(),
            nn.Conv2d(third, keypoints, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return each keypoint's mean (x, y) in [-1, 1] and peak, (n, 3 * keypoints)."""
        maps = self.layers(image.permute(0, 3, 1, 2).float() / 127.5 - 1)
        heat = maps.flatten(2).softmax(-1).unflatten(-1, maps.shape[-2:])
        grid = [torch.linspace(-1, 1, n, device=maps.device, dtype=maps.dtype) for n in maps.shape[-2:]]
        y, x = (heat.sum(3) * grid[0]).sum(-1), (heat.sum(2) * grid[1]).sum(-1)
        return torch.cat([x, y, maps.flatten(2).amax(-1).tanh()], -1)


class PointEncoder(nn.Module):
    """A small PointNet (Qi et al. 2017) as in DP3 (Ze et al. 2024).

    A network encodes each point; the features are the maximum over all points. It maps (n, points, 3) to (n, features).
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256), features: int = FEATURES) -> None:
        super().__init__()
        pairs = zip((3, *widths[:-1]), widths, strict=True)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU()) for a, b in pairs))
        self.head = nn.Sequential(nn.Linear(widths[-1], features), nn.LayerNorm(features))

    def forward(self, points: Tensor) -> Tensor:
        """Encode point clouds."""
        out: Tensor = self.head(self.layers(points).amax(1))
        return out


class Scaling(nn.Module):
    """Numbers of one observation key, scaled; angles among them as cosine and sine."""

    offset: Tensor
    scale: Tensor

    def __init__(
        self,
        width: int,
        offset: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
        angles: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.angles, ends = tuple(angles), [-1, *sorted(angles), width]
        self.plain = [(before + 1, after) for before, after in zip(ends, ends[1:], strict=False) if before + 1 < after]
        for name, value in (("offset", offset), ("scale", scale)):  # a card's, not of the weights
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Scale numbers (..., width)."""
        value = value.float()
        plain = [value[..., first:end] for first, end in self.plain]
        scaled: Tensor = (torch.cat([value[..., :0], *plain], -1) - self.offset) / self.scale
        turned = [value[..., i : i + 1] for i in self.angles]
        return torch.cat([scaled, *(angle.cos() for angle in turned), *(angle.sin() for angle in turned)], -1)


class Encoder(nn.Module):
    """Observation -> one condition vector (batch, condition_dim).

    `inputs` describes each observation key: `{"shape": [5], "offset": 256, "scale": 256, "angles": [4]}` for numbers
    (offset and scale as one number for all, or one each; `angles` index entries in radians that become cos, sin),
    `{"shape": [96, 96, 3], "image": true}` for a camera, or `{"shape": [512, 3], "points": true, "offset": 0, "scale":
    1}` for a point cloud.
    """

    def __init__(self, inputs: Mapping[str, Mapping[str, Any]], n_obs_steps: int) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.cameras = nn.ModuleDict({key: ImageEncoder() for key, spec in inputs.items() if spec.get("image")})
        self.clouds = nn.ModuleDict({key: PointEncoder() for key, spec in inputs.items() if spec.get("points")})
        self.scalings = nn.ModuleList(_scaling(spec) for spec in inputs.values())  # one for each key, in order
        self.condition_dim = n_obs_steps * sum(self._width(key, spec) for key, spec in inputs.items())

    def forward(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Encode observations, key -> (batch, n_obs_steps, *shape)."""
        pairs = zip(self.inputs, self.scalings, strict=True)
        return torch.cat([self._features(key, scaling(observation[key])).flatten(1) for key, scaling in pairs], -1)

    def _width(self, key: str, spec: Mapping[str, Any]) -> int:
        """Return the number of features of one time step."""
        if key in self.cameras:
            return 3 * KEYPOINTS
        if key in self.clouds:
            return FEATURES
        *rows, width = spec["shape"]
        features: int = math.prod(rows) * (width + len(spec.get("angles", [])))
        return features

    def _features(self, key: str, value: Tensor) -> Tensor:
        for networks in (self.cameras, self.clouds):
            if key in networks:
                features: Tensor = networks[key](value.flatten(0, 1))
                return features.reshape(*value.shape[:2], -1)
        return value


def _scaling(spec: Mapping[str, Any]) -> nn.Module:
    """Return what scales an input; pictures stay as they are."""
    if spec.get("image"):
        return nn.Identity()
    return Scaling(spec["shape"][-1], spec["offset"], spec["scale"], spec.get("angles", ()))
