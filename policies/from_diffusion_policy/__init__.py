"""Checkpoints of Diffusion Policy and DP3 as policies: `diffusion_policy:PATH.ckpt`.

Papers: Chi et al. 2023, arXiv 2303.04137; Ze et al. 2024, arXiv 2403.03954. Such a file is a dill pickle with the
configuration of the training. Nothing of it is executed: OmegaConf's classes become inert stand-ins, from which the
settings are read as data; `networks` rebuilds the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpc.errors import InputError, one_line
from gpc.inert import notice
from gpc.inference.settings import Sampling
from gpc.policies.checkpoint import (
    MALFORMED,
    NO_AVERAGE,
    CheckpointPolicy,
    fingerprint,
    read,
    representation,
    unwrapped,
)
from gpc.policies.dry_run import dry_run
from gpc.policies.from_diffusion_policy.networks import CloudEncoder, ObservationEncoder, Transformer, simple_unet, unet
from gpc.policies.schedulers import Scheduler, read_scheduler, sampling_of
from gpc.policies.settings import Settings
from gpc.policy.spec import ActionSpec, Observation, ObservationSpec
from gpc.score.denoiser import Denoiser, NetworkDenoiser, Prediction, no_grad

STAND_INS = (
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.StringNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.BooleanNode",
    "typing.Any",
    "dill._dill._load_type",
    "__builtin__.dict",
    "__builtin__.list",
    "__builtin__.object",
    "builtins.dict",
    "builtins.list",
    "builtins.object",
)
SCHEDULER = "policy.noise_scheduler"
UNET = ("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups")
TRANSFORMER = ("n_layer", "n_head", "n_emb", "n_cond_layers", "causal_attn")
CLOUD_KEYS = ("point_cloud", "agent_pos")
SCALE, OFFSET = "normalizer.params_dict.{}.scale", "normalizer.params_dict.{}.offset"
DUMMY = "_dummy_variable"  # an empty parameter by which the repository finds a module's device
MOVES = {  # settings of the actions, and their value if actions are moves
    "task.abs_action": False,
    "task.dataset.abs_action": False,
    "task.env_runner.abs_action": False,
    "task.dataset.delta_action": True,
}


@dataclass(frozen=True)
class Kind:
    """A policy class of the repositories.

    Attributes:
        network: the class of its network.
        section: section of the configuration with the network's settings.
        only: settings that are supported with one value only. It is also the value if the configuration lacks the
        setting.
        aligned: whether step n_obs_steps - 1 of a chunk is now, if the configuration has no setting for it.
        clouds: whether it reads point clouds.
    """

    network: Callable[..., nn.Module]
    section: str
    only: Mapping[str, Any] = field(default_factory=dict)
    aligned: bool = True
    clouds: bool = False


CLOUDS = Kind(
    unet,
    "policy",
    {
        "obs_as_global_cond": True,
        "condition_type": "film",
        "use_down_condition": True,
        "use_mid_condition": True,
        "use_up_condition": True,
        "pointnet_type": "pointnet",
        "pointcloud_encoder_cfg.use_projection": True,
    },
    clouds=True,
)
POLICY = "diffusion_policy.policy."
KINDS = {
    f"{POLICY}diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy": Kind(
        unet,
        "policy.model",
        {"obs_as_global_cond": True, "model.cond_predict_scale": True, "pred_action_steps_only": False},
        aligned=False,
    ),
    f"{POLICY}diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy": Kind(
        Transformer, "policy.model", {"obs_as_cond": True, "model.time_as_cond": True, "pred_action_steps_only": False}
    ),
    f"{POLICY}diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy": Kind(
        unet, "policy", {"obs_as_global_cond": True, "cond_predict_scale": True}
    ),
    f"{POLICY}diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy": Kind(
        Transformer, "policy", {"obs_as_cond": True, "time_as_cond": True, "pred_action_steps_only": False}
    ),
    "diffusion_policy_3d.policy.dp3.DP3": CLOUDS,
    "diffusion_policy_3d.policy.simple_dp3.SimpleDP3": replace(CLOUDS, network=simple_unet),
}


@dataclass(frozen=True, repr=False)
class DiffusionPolicy(CheckpointPolicy):
    """A policy of Diffusion Policy or DP3.

    It reads "obs" (low-dimensional), the keys of its `shape_meta` (images), or "point_cloud" and "agent_pos" (DP3).
    """

    encoder: nn.Module
    network: nn.Module
    prediction: Prediction
    normalisers: Mapping[str, tuple[Tensor, Tensor]]  # key -> scale, offset of `x * scale + offset`

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Normalise and encode; images are (batch, n_obs_steps, h, w, channels), uint8."""
        inputs = self.observations.read(observation)
        rows = {key: self._normalise(key, value.flatten(0, 1)) for key, value in inputs.items()}
        condition = self.encoder(rows).unflatten(0, (-1, self.observations.n_obs_steps))
        if not isinstance(self.network, Transformer):
            condition = condition.flatten(1)
        return NetworkDenoiser(no_grad(self.network), self.schedule, self.prediction, condition=(condition,))

    def _normalise(self, key: str, value: Tensor) -> Tensor:
        """Scale images to [0, 1], channels first, then apply scale and offset."""
        scale, offset = self.normalisers[key]
        if key in self.observations.images:
            value = (value.float() / 255).movedim(-1, -3).contiguous()
        return value * scale + offset


def load(source: str) -> DiffusionPolicy:
    """Load a `.ckpt`, with its averaged (EMA) weights if it has them.

    Raises:
        InputError: If the file is missing, damaged or names a class beyond OmegaConf's; is of another policy class or
            of settings that are not supported; or lacks weights or a normaliser.
    """
    path = Path(source).expanduser()
    content = read(path, STAND_INS)
    missing = [key for key in ("cfg", "state_dicts") if key not in content]
    if missing:
        raise InputError(f"{path} is no checkpoint of Diffusion Policy: it has no {missing[0]!r}")
    settings = Settings(path, content["cfg"])
    kind = _kind(settings)
    scheduler = read_scheduler(settings.get(SCHEDULER), f"{path}: {SCHEDULER}")
    try:
        return _build(kind, scheduler, settings, _weights(settings, content["state_dicts"]))
    except MALFORMED as error:
        raise InputError(
            f"{path}: its weights do not fit the network it describes: {type(error).__name__}: {one_line(error, 200)}"
        ) from None


def _kind(settings: Settings) -> Kind:
    """Return the policy class; check the settings with one supported value."""
    name = str(settings.get("policy._target_"))
    if name not in KINDS:
        known = ", ".join(kind.rpartition(".")[2] for kind in KINDS)
        raise InputError(f"{settings.path} is a {one_line(name, 120)}; gpc reads {known}")
    kind = KINDS[name]
    for key, wanted in kind.only.items():
        value = settings.find(f"policy.{key}", wanted)
        if value != wanted:
            raise InputError(
                f"{settings.path} has policy.{key}={one_line(value, 80)}; gpc reads this policy with {wanted} only"
            )
    return kind


def _weights(settings: Settings, states: Any) -> dict[str, Tensor]:
    """Return the averaged weights if the file has them, else the trained ones."""
    states = states if isinstance(states, dict) else {}
    if settings.find("training.use_ema", False) and not states.get("ema_model"):
        notice(NO_AVERAGE.format(settings.path))
    state = states.get("ema_model") or states.get("model")
    if not isinstance(state, dict):
        raise InputError(
            f"{settings.path} holds no weights (state_dicts: {one_line(', '.join(map(str, states))) if states else 'none'})"
        )
    tensors = unwrapped({key: value for key, value in state.items() if isinstance(value, Tensor)}, settings.path)
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def _build(kind: Kind, scheduler: Scheduler, settings: Settings, state: Mapping[str, Tensor]) -> DiffusionPolicy:
    steps = settings.get("policy.n_obs_steps")
    shapes, dim = _shapes(kind, settings, state)
    sizes = {key: 1 if len(shape) == 3 else shape[-1] for key, shape in shapes.items()}  # images have one scale for all
    normalisers = {key: _normaliser(settings.path, state, key, size) for key, size in sizes.items()}
    actions = _actions(kind, scheduler, settings, *_normaliser(settings.path, state, "action", dim))
    observations = ObservationSpec(shapes, steps, [key for key, shape in shapes.items() if len(shape) == 3])
    size = settings.path.stat().st_size
    weights = {k: v for k, v in state.items() if k.startswith(("model.", "obs_encoder.")) and not k.endswith(DUMMY)}
    parts = dry_run(lambda: _networks(kind, settings, shapes, actions), weights, size, str(settings.path))
    parts.load_state_dict(weights, assign=True)
    parts.eval().requires_grad_(False)
    return DiffusionPolicy(
        name=settings.path.stem,
        folder=settings.path.parent,
        fingerprint=fingerprint(settings.path),
        encoder=parts["obs_encoder"],
        network=parts["model"],
        schedule=scheduler.schedule,
        prediction=scheduler.prediction,
        actions=actions,
        observations=observations,
        normalisers=normalisers,
        n_action_steps=settings.find("n_action_steps", None) or settings.find("policy.n_action_steps", None),
        sampling=_sampling(settings),
    )


def _shapes(kind: Kind, settings: Settings, state: Mapping[str, Tensor]) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return the shapes of observations, images channels last, and the action dim."""
    meta = settings.find("policy.shape_meta", None)
    if meta is None:
        return {"obs": (settings.get("policy.obs_dim"),)}, settings.get("policy.action_dim")
    if kind.clouds and "imagin_robot" in meta["obs"]:
        raise InputError(
            f"{settings.path} reads points of an imagined robot ('imagin_robot'); gpc has the camera's only"
        )
    keys = CLOUD_KEYS if kind.clouds else meta["obs"]
    shapes = {key: _shape(settings.path, key, meta["obs"][key], state) for key in keys}
    action = meta["action"]["shape"]
    if len(action) != 1:
        raise InputError(f"{settings.path}: its actions have shape {one_line(tuple(action), 80)}; gpc reads one vector")
    return shapes, action[0]


def _shape(path: Path, key: str, meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[int, ...]:
    shape = tuple(meta["shape"])
    match meta.get("type", "low_dim"), len(shape):
        case "rgb", 3:
            return (*shape[1:], shape[0])
        case "low_dim", 1:
            return shape
        case "point_cloud", 2:  # the environments of DP3 add colours that its configurations do not declare
            scale = state.get(SCALE.format(key))
            return shape if scale is None or scale.numel() == 1 else (shape[0], scale.numel())
        case other, _:
            kind = one_line(f"{other} of shape {shape}", 120)
            raise InputError(f"{path}: observation {key!r} is a {kind}, which gpc does not read")


def _normaliser(path: Path, state: Mapping[str, Tensor], key: str, size: int) -> tuple[Tensor, Tensor]:
    """Return scale and offset (size,) of `x * scale + offset`."""
    names = [part.format(key) for part in (SCALE, OFFSET)]
    missing = [name for name in names if name not in state]
    if missing:
        raise InputError(f"{path} has no normaliser of {key!r} ({missing[0]} is missing)")
    scale, offset = (state[name].float().flatten() for name in names)
    if len(scale) != len(offset) or len(scale) not in (1, size):
        raise InputError(f"{path}: the normaliser of {key!r} has {len(scale)} numbers for {size} dimensions")
    return scale.expand(size), offset.expand(size)


def _actions(kind: Kind, scheduler: Scheduler, settings: Settings, scale: Tensor, offset: Tensor) -> ActionSpec:
    aligned = settings.find("policy.oa_step_convention", kind.aligned)
    return ActionSpec(
        settings.get("policy.horizon"),
        tuple((1 / scale.double()).tolist()),
        tuple((-offset.double() / scale.double()).tolist()),
        start=(1 if aligned else 0) - settings.get("policy.n_obs_steps"),
        bound=scheduler.bound,
        relative=_relative(settings),
    )


def _sampling(settings: Settings) -> Sampling | None:
    """Return the sampler; None if it is none of gpc's."""
    scheduler: dict[str, Any] = settings.get(SCHEDULER)
    kind = str(scheduler.get("_target_", "DDPMScheduler")).rpartition(".")[2]
    steps = settings.find("policy.num_inference_steps", None) or scheduler.get("num_train_timesteps", 1000)
    return None if settings.find("policy.eta", 0) else sampling_of(kind, steps, scheduler)


def _relative(settings: Settings) -> bool | None:
    """Return whether actions are moves (delta actions); None if undeclared."""
    values = {key: settings.find(key, None) for key in MOVES}
    declared = [values[key] == moves for key, moves in MOVES.items() if isinstance(values[key], bool)]
    return representation(declared[:1])


def _networks(
    kind: Kind, settings: Settings, shapes: Mapping[str, tuple[int, ...]], actions: ActionSpec
) -> nn.ModuleDict:
    """Build encoder and network under the names of their weights."""
    encoder = _cloud_encoder(settings, shapes) if kind.clouds else _encoder(settings, shapes)
    steps = settings.get("policy.n_obs_steps")
    if kind.network is Transformer:
        sizes = {key: settings.get(f"{kind.section}.{key}") for key in TRANSFORMER}
        network: nn.Module = Transformer(actions.dim, encoder.features, actions.horizon, steps, **sizes)
    else:
        sizes = {key: settings.get(f"{kind.section}.{key}") for key in UNET}
        network = kind.network(actions.dim, encoder.features * steps, **sizes)
    return nn.ModuleDict({"obs_encoder": encoder, "model": network})


def _encoder(settings: Settings, shapes: Mapping[str, tuple[int, ...]]) -> ObservationEncoder:
    crop = settings.find("policy.crop_shape", [76, 76])
    images = [shape[:2] for shape in shapes.values() if len(shape) == 3]
    if crop and images and not all(0 < a <= b for a, b in zip(crop, map(min, zip(*images, strict=True)), strict=True)):
        raise InputError(f"{settings.path} crops its images of {images} to {one_line(crop, 80)}")
    return ObservationEncoder(shapes, crop, bool(settings.find("policy.obs_encoder_group_norm", False)))


def _cloud_encoder(settings: Settings, shapes: Mapping[str, tuple[int, ...]]) -> CloudEncoder:
    cloud = "policy.pointcloud_encoder_cfg"
    colour, channels = settings.find("policy.use_pc_color", False), shapes["point_cloud"][-1]
    if channels != 6 and (colour or channels != 3):
        raise InputError(f"{settings.path}: its points have {channels} numbers, the network reads {6 if colour else 3}")
    norm = settings.find(f"{cloud}.final_norm", "none")
    if norm not in ("none", "layernorm"):
        raise InputError(f"{settings.path} has {cloud}.final_norm={norm!r}; gpc reads none, layernorm")
    return CloudEncoder(
        shapes["agent_pos"][0],
        settings.get(f"{cloud}.out_channels"),
        colour=bool(colour),
        layer_norm=bool(settings.find(f"{cloud}.use_layernorm", False)),
        final_norm=norm == "layernorm",
    )
