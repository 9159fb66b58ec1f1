"""The networks of Diffusion Policy and of DP3, built from parts of torch and robomimic under the names of their weights.

An encoder maps the normalised observations of single time steps, key -> (rows, *shape), to (rows, features). A network
maps x (batch, horizon, action), step (batch,) and the condition to the shape of x; the condition of a U-Net is (batch,
n_obs_steps * features), of a transformer (batch, n_obs_steps, features).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop

with contextlib.redirect_stdout(io.StringIO()):  # robomimic prints a page on its macros
    from robomimic.models.diffusion_policy_nets import ConditionalUnet1D, SinusoidalPosEmb
    from robomimic.models.obs_core import VisualCore

IMAGE_FEATURES = STATE_FEATURES = 64  # neither is a setting of the repositories


class ObservationEncoder(nn.Module):
    """Encodes cropped images by robomimic's ResNet18; passes other keys on."""

    def __init__(self, shapes: Mapping[str, Sequence[int]], crop: Sequence[int] | None, group_norm: bool) -> None:
        super().__init__()
        images = [key for key, shape in shapes.items() if len(shape) == 3]
        self.keys, self.crop = tuple(shapes), crop
        self.features = sum(IMAGE_FEATURES if key in images else math.prod(shapes[key]) for key in shapes)
        self.obs_nets = nn.ModuleDict(
            {key: _camera((shapes[key][-1], *(crop or shapes[key][:2])), group_norm) for key in images}
        )

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Encode rows; images are (rows, channels, height, width)."""
        return torch.cat([self._features(key, rows[key]) for key in self.keys], -1)

    def _features(self, key: str, value: Tensor) -> Tensor:
        if key not in self.obs_nets:
            return value.flatten(1)
        features: Tensor = self.obs_nets[key](center_crop(value, list(self.crop)) if self.crop else value)
        return features.relu()


def _camera(shape: Sequence[int], group_norm: bool) -> Any:
    core = VisualCore(
        list(shape),
        backbone_kwargs={"pretrained": False, "input_coord_conv": False},
        pool_kwargs={"num_kp": 32, "learnable_temperature": False, "temperature": 1.0, "noise_std": 0.0},
        feature_dimension=IMAGE_FEATURES,
    )
    if group_norm:
        _replace_batch_norms(core)
    return core


def _replace_batch_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(child.num_features // 16, child.num_features))
        else:
            _replace_batch_norms(child)


class CloudEncoder(nn.Module):
    """DP3's encoder (Ze et al. 2024, arXiv 2403.03954)."""

    def __init__(self, state_dim: int, features: int, colour: bool, layer_norm: bool, final_norm: bool) -> None:
        super().__init__()
        self.channels, self.features = 6 if colour else 3, features + STATE_FEATURES
        self.extractor = PointNet(self.channels, features, layer_norm, final_norm)
        self.state_mlp = nn.Sequential(
            nn.Linear(state_dim, STATE_FEATURES), nn.ReLU(), nn.Linear(STATE_FEATURES, STATE_FEATURES)
        )

    def forward(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Encode rows; points are (rows, points, 3 or 6), colours last."""
        points = self.extractor(rows["point_cloud"][..., : self.channels])
        return torch.cat([points, self.state_mlp(rows["agent_pos"])], -1)


class PointNet(nn.Module):
    """Maximum of features over points, projected; colours add a layer."""

    def __init__(self, channels: int, features: int, layer_norm: bool, final_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, 64), (64, 128), (128, 256)):
            layers += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs) if layer_norm else nn.Identity(), nn.ReLU()]
        if channels == 6:
            layers += [nn.Linear(256, 512)]
        self.mlp = nn.Sequential(*layers)
        project = nn.Linear(512 if channels == 6 else 256, features)
        self.final_projection = nn.Sequential(project, nn.LayerNorm(features)) if final_norm else project

    def forward(self, points: Tensor) -> Tensor:
        """Map (rows, points, channels) to (rows, features)."""
        out: Tensor = self.final_projection(self.mlp(points).amax(1))
        return out


def unet(action: int, condition: int, **size: Any) -> Any:
    """Build robomimic's copy of the U-Net; `size` has its arguments."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        return ConditionalUnet1D(action, condition, **size)


def simple_unet(action: int, condition: int, **size: Any) -> Any:
    """Build the U-Net of simple DP3: one residual block a level instead of two."""
    network = unet(action, condition, **size)
    network.down_modules, network.up_modules = (
        nn.ModuleList(OneBlock([block, resize]) for block, _, resize in levels)
        for levels in (network.down_modules, network.up_modules)
    )
    network.mid_modules = network.mid_modules[:1]
    return network


class OneBlock(nn.ModuleList):
    """A level with one residual block, and an identity as the second."""

    def __iter__(self) -> Iterator[Any]:
        block, resize = self._modules.values()
        return iter((block, lambda x, condition: x, resize))


class Transformer(nn.Module):
    """A decoder over the chunk that attends to the step and the observations.

    Chi et al. 2023, section 3.1.
    """

    def __init__(
        self,
        action: int,
        features: int,
        horizon: int,
        n_obs_steps: int,
        *,
        n_layer: int,
        n_head: int,
        n_emb: int,
        n_cond_layers: int,
        causal_attn: bool,
    ) -> None:
        super().__init__()
        layer = {"nhead": n_head, "dim_feedforward": 4 * n_emb, "dropout": 0.0, "activation": "gelu"}
        layer |= {"batch_first": True, "norm_first": True}
        self.input_emb = nn.Linear(action, n_emb)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, n_emb))
        self.time_emb = SinusoidalPosEmb(n_emb)
        self.cond_obs_emb = nn.Linear(features, n_emb)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, 1 + n_obs_steps, n_emb))
        self.encoder: nn.Module = nn.Sequential(nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb))
        if n_cond_layers:
            encoder = nn.TransformerEncoderLayer(n_emb, **layer)  # type: ignore[arg-type]
            self.encoder = nn.TransformerEncoder(encoder, n_cond_layers, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(n_emb, **layer), n_layer)  # type: ignore[arg-type]
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, action)
        # Attention of each step of the chunk; the values come with the weights.
        self.register_buffer("mask", torch.zeros(horizon, horizon) if causal_attn else None)
        self.register_buffer("memory_mask", torch.zeros(horizon, 1 + n_obs_steps) if causal_attn else None)
        self.is_causal = False
        self.register_load_state_dict_post_hook(_detect_causal)

    def forward(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Predict from x, steps and conditions."""
        tokens = torch.cat([self.time_emb(step)[:, None], self.cond_obs_emb(condition)], 1)
        memory = self.encoder(tokens + self.cond_pos_emb)
        hidden = self.input_emb(x) + self.pos_emb
        hidden = self.decoder(
            hidden, memory, tgt_mask=self.mask, memory_mask=self.memory_mask, tgt_is_causal=self.is_causal
        )
        out: Tensor = self.head(self.ln_f(hidden))
        return out


def _detect_causal(transformer: Transformer, keys: Any) -> None:
    """Detect a causal mask in loaded weights.

    torch would compare its numbers at every call.
    """
    mask = transformer.mask
    if isinstance(mask, Tensor) and mask.device.type != "meta":
        transformer.is_causal = torch.equal(mask, nn.Transformer.generate_square_subsequent_mask(len(mask)).to(mask))
