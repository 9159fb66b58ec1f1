"""robomimic checkpoints (0.5.0) of `DiffusionPolicyUNet` as policies: `robomimic:PATH.pth`.

robomimic builds the networks from the checkpoint's configuration; gpc takes the EMA weights, the observation encoder
and the normalisers, and calls the noise network at (x, step). Images are cropped at the centre; robomimic 0.5.0 leaves
the EMA copy in training mode, so that its own rollouts crop at random. It also builds its U-Net in one size (65 million
weights) for every configuration; here the size is that of the stored weights.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
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
from gpc.policies.schedulers import Scheduler, read_scheduler, sampling_of
from gpc.policy.env_spec import EnvSpec
from gpc.policy.spec import DIMENSIONS, ActionSpec, Observation, ObservationSpec, is_whole
from gpc.score.denoiser import Denoiser, NetworkDenoiser, no_grad

with contextlib.redirect_stdout(io.StringIO()):  # it prints a page on its macros
    import robomimic.models.base_nets as base_nets
    import robomimic.models.diffusion_policy_nets as networks
    import robomimic.utils.file_utils as file_utils
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.algo import algo_factory


ROBOSUITE = 1  # robomimic's number for this simulator
NOT_PHYSICS = (
    "has_",
    "use_",
    "camera_",
    "render",
    "ignore_done",
    "hard_reset",
    "lang",
    "env_name",
)  # of a simulator's arguments


@dataclass(frozen=True, repr=False)
class RobomimicPolicy(CheckpointPolicy):
    """A diffusion policy of robomimic, with the simulator of its training."""

    nets: nn.ModuleDict
    normalisers: Mapping[str, tuple[Tensor, Tensor]]
    simulator: EnvSpec | None

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Normalise and encode; images are (batch, n_obs_steps, h, w, channels), uint8."""
        inputs = self.observations.read(observation)
        rows = {key: self._prepare(key, value.flatten(0, 1)) for key, value in inputs.items()}
        features = self.nets["obs_encoder"](obs=rows)
        condition = features.unflatten(0, (-1, self.observations.n_obs_steps)).flatten(1)
        network = no_grad(self.nets["noise_pred_net"])  # takes the condition as its third argument
        return NetworkDenoiser(network, self.schedule, "noise", condition=(condition,))

    def _prepare(self, key: str, value: Tensor) -> Tensor:
        """Apply statistics, then scale images to [0, 1], as robomimic's `RolloutPolicy`."""
        value = value.float()
        if key in self.normalisers:
            scale, offset = self.normalisers[key]
            value = (value - offset) / scale
        if key not in self.observations.images:
            return value
        return (value / 255).clamp(0, 1).movedim(-1, -3).contiguous()


def load(source: str) -> RobomimicPolicy:
    """Load a `.pth` file of robomimic's diffusion policy.

    Raises:
        InputError: If the file is missing, damaged or of another algorithm, or its actions are no scale and offset.
    """
    path = Path(source).expanduser()
    content = read(path)
    missing = [key for key in ("model", "config", "algo_name", "shape_metadata", "env_metadata") if key not in content]
    if missing:
        raise InputError(f"{path} is no robomimic checkpoint: it has no {missing[0]!r}")
    if str(content["algo_name"]) != "diffusion_policy":
        name = one_line(repr(content["algo_name"]), 80)
        raise InputError(f"{path} was trained with {name}, which has no score to compose; gpc reads diffusion_policy")
    try:
        return _build(path, content)
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise InputError(f"{path} does not fit the network it describes ({reason})") from None


def _build(path: Path, content: dict[str, Any]) -> RobomimicPolicy:
    config = _check_config(path, content)
    weights = _weights(path, config, content["model"])
    config["algo"]["ema"] = {"enabled": False}  # robomimic would build a second network for the average
    shape_metadata, environments = (_listed(content[key]) for key in ("shape_metadata", "env_metadata"))
    content |= {"config": json.dumps(config), "model": {"nets": weights}, "shape_metadata": shape_metadata[0]}
    _compare_simulator(path, environments[0])
    scheduler = _scheduler(path, config)
    actions = _action_spec(path, config, content, environments, scheduler.bound)
    stored = shape_metadata[0]["all_shapes"]
    images = [key for key in config["observation"]["modalities"]["obs"].get("rgb", []) if key in stored]
    shapes = {k: (*shape[1:], shape[0]) if k in images else tuple(shape) for k, shape in stored.items()}
    observations = ObservationSpec(shapes, config["algo"]["horizon"]["observation_horizon"], images)
    dry_run(lambda: _networks(content, "meta"), weights, path.stat().st_size, str(path))
    nets = _networks(content, "cpu")
    nets.load_state_dict(weights)
    statistics = content.get("obs_normalization_stats") or {}
    return RobomimicPolicy(
        name=path.stem,
        folder=path.parent,
        fingerprint=fingerprint(path),
        nets=nets["policy"].eval().requires_grad_(False),
        schedule=scheduler.schedule,
        actions=actions,
        observations=observations,
        normalisers={key: _statistics(path, key, statistics, len(shapes.get(key, ()))) for key in statistics},
        simulator=_simulator(path, config, environments, shapes),
        n_action_steps=config["algo"]["horizon"]["action_horizon"],
        sampling=_sampling(config["algo"]),
    )


def _weights(path: Path, config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the averaged weights if the training made an average.

    If the file has none, the trained ones are returned with a notice; robomimic itself would leave random ones.
    """
    averages = config["algo"].get("ema", {}).get("enabled", True)
    weights = model.get("ema") if averages else None
    if averages and not weights:
        notice(NO_AVERAGE.format(path))
    return unwrapped(weights or model["nets"], path)


def _listed(metadata: Any) -> list[Mapping[str, Any]]:
    """Return the metadata of each data set; a training on one has no list."""
    return list(metadata) if isinstance(metadata, list | tuple) else [metadata]


def _scheduler(path: Path, config: Mapping[str, Any]) -> Scheduler:
    """Read the scheduler that robomimic uses, whose loss is that of noise."""
    algo = config["algo"]
    kind = "ddpm" if algo["ddpm"]["enabled"] else "ddim"
    settings = {key: v for key, v in algo[kind].items() if key not in ("enabled", "num_inference_timesteps")}
    scheduler = read_scheduler(settings, f"{path}: algo.{kind}")
    if scheduler.prediction != "noise":
        raise InputError(f"{path}: prediction type {settings['prediction_type']!r}; robomimic trains 'epsilon' only")
    return scheduler


def _sampling(algo: Mapping[str, Any]) -> Sampling | None:
    kind = "ddpm" if algo["ddpm"]["enabled"] else "ddim"
    return sampling_of(f"{kind.upper()}Scheduler", algo[kind]["num_inference_timesteps"], algo[kind])


def _networks(content: Mapping[str, Any], device: str) -> Any:
    """Build the networks by robomimic, without their weights."""
    shapes = content["shape_metadata"]
    with contextlib.redirect_stdout(io.StringIO()), unet(**size_of(content["model"]["nets"])):
        config, _ = file_utils.config_from_checkpoint(ckpt_dict=dict(content))
        obs_utils.initialize_obs_utils_with_config(config)
        algorithm = algo_factory(
            content["algo_name"], config, shapes["all_shapes"], shapes["ac_dim"], torch.device(device)
        )
    return algorithm.nets


@contextlib.contextmanager
def unet(down_dims: Sequence[int], diffusion_step_embed_dim: int, kernel_size: int = 5) -> Iterator[None]:
    """Make robomimic build its U-Net in this size within the block."""
    original = networks.ConditionalUnet1D
    networks.ConditionalUnet1D = functools.partial(
        original,
        down_dims=list(down_dims),
        diffusion_step_embed_dim=diffusion_step_embed_dim,
        kernel_size=kernel_size,
    )
    try:
        yield
    finally:
        networks.ConditionalUnet1D = original


def size_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the size of the stored U-Net, as arguments of `unet`.

    Raises:
        KeyError: If the weights are another network's.
    """
    prefix = "policy.noise_pred_net."
    first = re.compile(re.escape(prefix) + r"down_modules\.\d+\.0\.blocks\.0\.block\.0\.weight")
    widths = [value.shape for key, value in weights.items() if first.fullmatch(key)]
    embedding = weights[prefix + "diffusion_step_encoder.1.weight"].shape[1]
    return {
        "down_dims": [shape[0] for shape in widths],
        "diffusion_step_embed_dim": embedding,
        "kernel_size": widths[0][2],
    }


def _simulator(
    path: Path, config: Mapping[str, Any], environments: list[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]
) -> EnvSpec | None:
    """Return the robosuite task of the demonstrations; None for another simulator.

    A notice names the tasks if there are several.
    """
    tasks = {json.dumps([env.get("env_name"), env.get("env_kwargs")], default=str) for env in environments}
    if len(tasks) > 1:
        names = ", ".join(sorted({str(env.get("env_name")) for env in environments}))
        notice(f"{path} was trained in {len(tasks)} environments ({one_line(names, 80)}); choose one with env=")
        return None
    metadata = environments[0]
    if metadata.get("type") != ROBOSUITE or "env_name" not in metadata:
        return None
    settings = {key: v for key, v in metadata.get("env_kwargs", {}).items() if not key.startswith(NOT_PHYSICS)}
    options = {"task": metadata["env_name"], "absolute": bool(_rotations(config["train"])), "settings": settings}
    sizes = [shape[:2] for shape in shapes.values() if len(shape) == 3]
    return EnvSpec(
        "robosuite",
        max_steps=config["experiment"]["rollout"]["horizon"],
        options=options | ({"image_size": sizes[0]} if sizes else {}),
    )


def _rotations(train: Mapping[str, Any]) -> list[str]:
    """Return the parts of an action that are 6D rotations."""
    return [key for key in train["action_keys"] if train["action_config"].get(key, {}).get("format") == "rot_6d"]


def _compare_simulator(path: Path, metadata: Mapping[str, Any]) -> None:
    """Print a notice if the checkpoint's robosuite is not the installed one.

    Observations and controllers may differ.
    """
    trained = metadata.get("env_version")
    try:
        installed = version("robosuite")
    except PackageNotFoundError:
        return  # nothing to simulate with
    if trained != installed:
        notice(f"{path} was trained on robosuite {trained or '(unknown)'}, installed is {installed}")


def _statistics(
    path: Path, key: str, statistics: Mapping[str, Any], dims: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return scale and offset of a key, which older files call std and mean.

    robomimic stores them as lists with one row; they are returned without it.
    """
    entry = statistics[key]
    names = ("scale", "offset") if "scale" in entry else ("std", "mean")
    if not all(name in entry for name in names):
        raise InputError(f"{path}: the statistics of {key!r} are {one_line(', '.join(entry), 80)}, no scale and offset")
    scale, offset = (torch.as_tensor(np.array(entry[name], np.float64)).to(dtype) for name in names)
    return (scale[0], offset[0]) if scale.dim() > dims else (scale, offset)


def _walk(node: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield every (dictionary, key) of a configuration."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield node, key
        yield from _walk(value)
    for value in node if isinstance(node, list) else ():
        yield from _walk(value)


def _check_config(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration; names that robomimic evaluates must be its networks."""
    try:
        config: dict[str, Any] = json.loads(content["config"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: its configuration is not valid JSON: {error}") from None
    for node, key in _walk(config.get("observation", {})):
        if key in ("backbone_class", "pool_class") and node[key] is not None:
            value = getattr(base_nets, str(node[key]), None)
            if not (isinstance(value, type) and issubclass(value, nn.Module) and value.__name__ == node[key]):
                raise InputError(f"{path}: {key} {one_line(repr(node[key]), 80)} is not a network of robomimic")
        if key == "pretrained":
            node[key] = False  # the checkpoint holds the weights; nothing is downloaded
    return config


def _action_spec(
    path: Path,
    config: dict[str, Any],
    content: dict[str, Any],
    environments: list[Mapping[str, Any]],
    bound: float | None,
) -> ActionSpec:
    horizon, train, dim = config["algo"]["horizon"], config["train"], content["shape_metadata"]["ac_dim"]
    statistics = content.get("action_normalization_stats")
    if not is_whole(dim, DIMENSIONS, 1):
        raise InputError(f"{path}: its actions have {one_line(dim, 40)} dimensions; gpc reads 1 to {DIMENSIONS}")
    scale, offset = torch.ones(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)
    if statistics:
        keys = train["action_keys"]
        lost = [key for key in keys if key not in statistics]
        if lost:
            raise InputError(f"{path} has no normalisation statistic of {lost[0]!r}")
        parts = [_statistics(path, key, statistics, 1, torch.float64) for key in keys]
        for key in _rotations(train):
            sizes = [part.numel() for part, _ in parts]
            euler = train["action_config"][key].get("convert_at_runtime") == "rot_euler"
            if sizes != [3, 6, 1] or key != keys[1] or key.endswith("rel_rot_6d") or euler:
                raise InputError(
                    f"{path}: {key} is predicted as rot_6d; gpc takes absolute position, rot_6d and gripper in this order, "
                    "converted to axis-angle, and nothing else"
                )
        scale, offset = (torch.cat(values) for values in zip(*parts, strict=True))
        if len(scale) != dim:
            raise InputError(f"{path} has action statistics of {len(scale)} dimensions, its network acts in {dim}")
    return ActionSpec(
        horizon["prediction_horizon"],
        tuple(scale.tolist()),
        tuple(offset.tolist()),
        start=1 - horizon["observation_horizon"],
        bound=bound,
        relative=False if _rotations(train) else _relative(environments),
    )


def _relative(environments: list[Mapping[str, Any]]) -> bool | None:
    """Return whether the simulator's controller takes moves (delta actions)."""
    names = ("input_type", "control_delta")  # robosuite 1.5 reads the first, 1.4 the second
    declared = [[node[key] in (True, "delta") for node, key in _walk(environments) if key == name] for name in names]
    return representation(declared[0] or declared[1])
