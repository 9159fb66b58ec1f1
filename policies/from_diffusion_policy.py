"""Checkpoints of Diffusion Policy (Chi et al. 2023, arXiv 2303.04137) as policies: `diffusion_policy:PATH.ckpt`.

Such a file is a dill pickle with the training's whole configuration. Here nothing of it is executed: OmegaConf's classes come as
inert stand-ins, from which the plain settings are read. The low-dimensional U-Net is rebuilt with robomimic's copy of that
network, which has the same parameters under the same names.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from gpc.denoise import Denoiser, NetworkDenoiser, Prediction, frozen
from gpc.errors import InputError
from gpc.noise import NoiseLevels, VariancePreserving
from gpc.policies.checkpoint import Inert, fingerprint, read
from gpc.policy import ActionSpec, Observation, ObservationSpec

with contextlib.redirect_stdout(io.StringIO()):  # robomimic greets with a page on its macros
    import robomimic.models.diffusion_policy_nets as networks

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
    "collections.defaultdict",
    "typing.Any",
    "dill._dill._load_type",
    "__builtin__.dict",
    "__builtin__.list",
    "__builtin__.object",
    "builtins.dict",
    "builtins.list",
    "builtins.object",
)
KIND = "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy"
PREDICTIONS: dict[str, Prediction] = {"epsilon": "noise", "sample": "sample"}


@dataclass(frozen=True)
class DiffusionPolicy:
    """The low-dimensional U-Net policy of Diffusion Policy behind the one coordinate; it reads the observation "obs"."""

    name: str
    fingerprint: str
    network: nn.Module
    schedule: VariancePreserving
    prediction: Prediction
    actions: ActionSpec
    observations: ObservationSpec
    scale: Tensor  # (obs,), of the normaliser `obs * scale + offset`
    offset: Tensor

    @property
    def levels(self) -> NoiseLevels:
        """Its trained levels."""
        return self.schedule.levels

    def condition(self, observation: Observation) -> Denoiser:
        """Normalise once."""
        self.observations.check(observation)
        condition = (observation["obs"].float() * self.scale + self.offset).flatten(1)
        network = frozen(lambda x, step: self.network(x, step, global_cond=condition))
        return NetworkDenoiser(network, self.schedule, self.prediction)


def load(source: str) -> DiffusionPolicy:
    """Load a `.ckpt` of the low-dimensional U-Net policy, with its averaged (EMA) weights where it has them.

    Raises InputError where the file is missing, damaged or asks for a class beyond OmegaConf's, is of another policy class,
    or lacks weights or a normaliser.
    """
    path = Path(source).expanduser()
    content = read(path, STAND_INS)
    missing = [key for key in ("cfg", "state_dicts") if key not in content]
    if missing:
        raise InputError(f"{path} is no checkpoint of Diffusion Policy: it has no {missing[0]!r}")
    settings = plain(content["cfg"])
    if not isinstance(settings, dict):
        raise InputError(f"{path}: its cfg is no OmegaConf configuration")
    config = OmegaConf.create(settings)
    _check_kind(path, config)
    states = content["state_dicts"]
    state = states.get("ema_model") or states.get("model")
    if not state:
        raise InputError(f"{path} holds no weights (state_dicts: {', '.join(states) or 'none'})")
    policy, network, scheduler = (
        _section(path, config, key) for key in ("policy", "policy.model", "policy.noise_scheduler")
    )
    steps, horizon = _get(path, policy, "n_obs_steps"), _get(path, policy, "horizon")
    scale, offset = _normaliser(path, state, "action")
    actions = ActionSpec(
        horizon,
        tuple((1 / scale).tolist()),
        tuple((-offset / scale).tolist()),
        start=(1 if _get(path, policy, "oa_step_convention") else 0) - steps,
        bound=1.0 if _get(path, scheduler, "clip_sample") else None,
    )
    obs_scale, obs_offset = _normaliser(path, state, "obs")
    return DiffusionPolicy(
        name=path.stem,
        fingerprint=fingerprint(path),
        network=_network(path, network, state, actions.dim, len(obs_scale) * steps),
        schedule=_schedule(path, scheduler),
        prediction=PREDICTIONS[_get(path, scheduler, "prediction_type")],
        actions=actions,
        observations=ObservationSpec({"obs": (len(obs_scale),)}, steps),
        scale=obs_scale,
        offset=obs_offset,
    )


def plain(node: Any) -> Any:
    """Dictionaries, lists and values from the stand-ins of OmegaConf's nodes."""
    if isinstance(node, Inert):
        content = node.state.get("_content", node.state.get("_val")) if isinstance(node.state, Mapping) else None
        return plain(content)
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list) else node


def _get(path: Path, config: DictConfig, key: str) -> Any:
    """One setting, its references followed; InputError where it is missing or needs code to be evaluated."""
    try:
        value = OmegaConf.select(config, key)
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: cfg.{key} cannot be read: {str(error).splitlines()[0]}") from None
    if value is None:
        raise InputError(f"{path}: its configuration has no {key!r}")
    return value


def _section(path: Path, config: DictConfig, key: str) -> DictConfig:
    section = _get(path, config, key)
    if not isinstance(section, DictConfig):
        raise InputError(f"{path}: cfg.{key} is no section")
    return section


def _check_kind(path: Path, config: DictConfig) -> None:
    kind = _get(path, config, "policy._target_")
    if kind != KIND:
        raise InputError(f"{path} is a {kind}; gpc reads {KIND}")
    wanted = {"obs_as_global_cond": True, "model.cond_predict_scale": True, "pred_action_steps_only": False}
    for key, value in wanted.items():
        found = _get(path, config, f"policy.{key}")
        if found != value:
            raise InputError(f"{path} has policy.{key}={found}; gpc reads the standard U-Net, with {value}")
    prediction = _get(path, config, "policy.noise_scheduler.prediction_type")
    if prediction not in PREDICTIONS:
        raise InputError(f"{path} has prediction_type={prediction!r}; gpc reads {', '.join(PREDICTIONS)}")


def _normaliser(path: Path, state: Mapping[str, Tensor], key: str) -> tuple[Tensor, Tensor]:
    """Scale and offset of the checkpoint's `x * scale + offset`."""
    names = [f"normalizer.params_dict.{key}.{part}" for part in ("scale", "offset")]
    missing = [name for name in names if name not in state]
    if missing:
        raise InputError(f"{path} has no normaliser of {key!r} ({missing[0]} is missing)")
    return state[names[0]], state[names[1]]


def _schedule(path: Path, config: DictConfig) -> VariancePreserving:
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    return VariancePreserving(tuple(DDPMScheduler(**{key: _get(path, config, key) for key in keys}).betas.tolist()))


def _network(path: Path, config: DictConfig, state: Mapping[str, Tensor], action: int, condition: int) -> nn.Module:
    keys = ("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups")
    settings = {key: _get(path, config, key) for key in keys}
    with contextlib.redirect_stdout(io.StringIO()):
        network = networks.ConditionalUnet1D(
            action, condition, **(settings | {"down_dims": list(settings["down_dims"])})
        )
    try:
        network.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: its weights do not fit the network it describes: {reason}") from None
    return network.eval().requires_grad_(False)
