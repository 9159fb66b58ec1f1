"""LeRobot checkpoints (0.4.4) as policies: `lerobot:FOLDER`, or `lerobot:OWNER/NAME@COMMIT` on the hub.

LeRobot keeps the network, its pre- and post-processors (normalisation, tokeniser, renaming) and its scheduler; this file
asks it for one thing, the network's answer at (x, t), and leaves sampling and composing to gpc.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType
from lerobot.policies.factory import get_policy_class
from lerobot.policies.smolvla import processor_smolvla  # noqa: F401  (registers its processor step)
from lerobot.policies.smolvla.modeling_smolvla import make_att_2d_masks
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import OBS_IMAGES, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor

from gpc.denoise import Denoiser, Network, NetworkDenoiser, Prediction, frozen
from gpc.env import TASK, TASK_BYTES, read_text
from gpc.errors import InputError
from gpc.noise import LinearFlow, NoiseLevels, Schedule, VariancePreserving
from gpc.policy import ActionSpec, Observation, ObservationSpec

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")

# A processor file may name any class of any module; LeRobot would import it. Only LeRobot's own, known steps are built.
STEPS = frozenset(
    {
        "device_processor",
        "normalizer_processor",
        "rename_observations_processor",
        "smolvla_new_line_processor",
        "to_batch_processor",
        "tokenizer_processor",
        "unnormalizer_processor",
    }
)
STATISTICS = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
NO_SCORE = {
    "act": "it regresses one action chunk (L1 loss)",
    "vqbet": "it chooses codes of a vector-quantised action",
    "pi0_fast": "it writes actions as text tokens",
    "tdmpc": "it plans with a learned value",
    "sac": "its actor is one Gaussian, not a denoiser",
}


class Family(NamedTuple):
    """What a policy type of LeRobot says of itself: how it was trained, and how its network is asked."""

    schedule: Callable[[Any], Schedule]
    prediction: Callable[[Any], Prediction]
    bound: Callable[[Any], float | None]
    horizon: Callable[[Any], int]
    bind: Callable[[Any, dict[str, Tensor]], Network]
    language: bool = False


def _diffusion_network(model: Any, batch: dict[str, Tensor]) -> Network:
    cameras = list(model.config.image_features)
    if cameras:
        batch = batch | {OBS_IMAGES: torch.stack([batch[key] for key in cameras], dim=-4)}
    condition = model.diffusion._prepare_global_conditioning(batch)
    return lambda x, label: model.diffusion.unet(x, label, global_cond=condition)


def _smolvla_network(policy: Any, batch: dict[str, Tensor]) -> Network:
    """The images, the instruction and the state become one prefix, attended to from its cache at every step.

    The network knows `max_action_dim` dimensions. Those that the robot lacks were trained on zeros, so they stay on their exact
    path, t times one fixed noise.
    """
    model, config = policy.model, policy.config
    images, masks = policy.prepare_images(batch)
    words = [batch[key][:, -1] for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)]
    embedded, padding, attention = model.embed_prefix(images, masks, *words, state=policy.prepare_state(batch))
    _, cache = model.vlm_with_expert.forward(
        attention_mask=make_att_2d_masks(padding, attention),
        position_ids=torch.cumsum(padding, dim=1) - 1,
        past_key_values=None,
        inputs_embeds=[embedded, None],
        use_cache=config.use_cache,
        fill_kv_cache=True,
    )
    dim = config.action_feature.shape[0]
    shape = (1, config.chunk_size, config.max_action_dim - dim)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def network(x: Tensor, t: Tensor) -> Tensor:
        whole = torch.cat([x, t[:, None, None] * noise], dim=-1)
        velocity: Tensor = model.denoise_step(padding, cache, whole, t)
        return velocity[..., :dim]

    return network


FAMILIES = {
    "diffusion": Family(
        schedule=lambda model: VariancePreserving(tuple(model.diffusion.noise_scheduler.betas.tolist())),
        prediction=lambda config: "noise" if config.prediction_type == "epsilon" else "sample",
        bound=lambda config: config.clip_sample_range if config.clip_sample else None,
        horizon=lambda config: config.horizon,
        bind=_diffusion_network,
    ),
    "smolvla": Family(
        schedule=lambda model: LinearFlow(t_min=0.001),
        prediction=lambda config: "velocity",
        bound=lambda config: None,
        horizon=lambda config: config.chunk_size,
        bind=_smolvla_network,
        language=True,
    ),
}


@dataclass(frozen=True)
class LeRobotPolicy:
    """A LeRobot policy behind the one coordinate."""

    name: str
    fingerprint: str
    model: Any
    preprocess: PolicyProcessorPipeline
    family: Family
    actions: ActionSpec
    observations: ObservationSpec

    @cached_property
    def schedule(self) -> Schedule:
        """How it was trained."""
        return self.family.schedule(self.model)

    @property
    def levels(self) -> NoiseLevels:
        """Its trained range of sigma."""
        return self.schedule.levels

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Preprocess and encode once; images are (batch, n_obs_steps, height, width, channels), uint8."""
        self.observations.check(observation)
        seen = {key: observation[key] for key in self.observations.shapes}
        rows = {key: _as_lerobot(key, value.flatten(0, 1)) for key, value in seen.items()}
        batch = self.preprocess(rows)
        count, steps = next(iter(seen.values())).shape[:2]
        words = (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK) if self.family.language else ()
        keys = (*self.model.config.input_features, *words)
        network = self.family.bind(self.model, {key: batch[key].unflatten(0, (count, steps)) for key in keys})
        return NetworkDenoiser(frozen(network), self.schedule, self.family.prediction(self.model.config))


def _as_lerobot(key: str, value: Tensor) -> Tensor | list[str]:
    """Images (rows, height, width, channels) uint8 -> (rows, channels, height, width) in [0, 1]; an instruction as text."""
    if key == TASK:
        return [read_text(row) for row in value.to(torch.uint8).cpu().numpy()]
    return value.movedim(-1, -3).contiguous().float() / 255 if value.dtype == torch.uint8 else value


def load(source: str) -> LeRobotPolicy:
    """Load a checkpoint of `lerobot-train` (its `pretrained_model` folder), or one of the hub at a commit.

    Everything that can be wrong is looked at before the weights are read. Raises InputError where a file is missing or
    damaged, a processor step or statistic is missing or unknown, or the policy type has no score.
    """
    folder = find(source)
    config = _read_config(folder)
    family = FAMILIES[config.type]
    pipelines = [_load_processor(folder, name) for name in PROCESSORS]
    for name, pipeline in zip(PROCESSORS, pipelines, strict=True):
        _check_statistics(folder / name, config, pipeline)
    if not config.action_feature or not config.input_features:
        raise InputError(f"{folder / CONFIG} declares no action or no observation")
    scale, offset = _affine(folder, pipelines[1], config.action_feature.shape[0])
    actions = ActionSpec(
        family.horizon(config), scale, offset, start=1 - config.n_obs_steps, bound=family.bound(config)
    )
    shapes = _raw_shapes(config, pipelines[0]) | ({TASK: (TASK_BYTES,)} if family.language else {})
    observations = ObservationSpec(shapes, config.n_obs_steps)
    model = _load_model(folder, config)
    return LeRobotPolicy(_name(folder), _fingerprint(folder), model, pipelines[0], family, actions, observations)


def find(source: str) -> Path:
    """The folder of a checkpoint, fetched from the hub where it is not a local one.

    Raises InputError where there is no such folder and no pinned commit, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        inner = folder / "pretrained_model"
        return inner if inner.is_dir() else folder
    repo, _, revision = source.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or folder.exists():
        raise InputError(f"no folder {source!r}; give the pretrained_model folder of a LeRobot checkpoint")
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise InputError(
            f"no folder {source!r}; for a checkpoint of the hub pin its commit, as in lerobot:{repo}@<40 hex digits>"
        )
    from huggingface_hub import snapshot_download

    print(f"gpc: fetching {repo} at {revision[:12]} ({CONFIG}, {WEIGHTS}, processors)", file=sys.stderr)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{repo} cannot be fetched ({type(error).__name__}); offline, put its {CONFIG}, {WEIGHTS} and processor files "
            f"into a folder and load lerobot:FOLDER"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} is missing; a LeRobot checkpoint has {CONFIG}, {WEIGHTS} and {PROCESSORS}") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def _read_config(folder: Path) -> Any:
    kind = _read_json(folder / CONFIG).get("type")
    if kind in NO_SCORE:
        raise InputError(f"{folder}: a LeRobot {kind} policy has no score to compose: {NO_SCORE[kind]}")
    if kind in ("pi0", "pi05"):
        raise InputError(
            f"{folder}: a LeRobot {kind} policy needs a patched transformers; on the stock one the velocity of pi05 ignores t, "
            "so gpc does not read it"
        )
    if kind not in FAMILIES:
        raise InputError(f"{folder}: LeRobot policy type {kind!r} is not supported; gpc reads {', '.join(FAMILIES)}")
    get_policy_class(kind)  # registers its configuration
    try:
        config = PreTrainedConfig.from_pretrained(folder)
    except Exception as error:  # draccus raises what the field's parser raises
        raise InputError(f"{folder / CONFIG}: {' '.join(str(error).split())}") from None
    if getattr(config, "adapt_to_pi_aloha", False):
        raise InputError(
            f"{folder}: adapt_to_pi_aloha bends the gripper's actions; that is no scale and offset to compose"
        )
    config.device = "cpu"
    return config


def _load_processor(folder: Path, name: str) -> PolicyProcessorPipeline:
    """Build a processor after its steps are known to be LeRobot's own and its files to lie in the folder."""
    path = folder / name
    steps = _read_json(path).get("steps", [])
    for step in steps:
        known = step.get("registry_name")
        if known not in STEPS:
            raise InputError(
                f"{path} asks for the step {known or step.get('class')!r}; known are {', '.join(sorted(STEPS))}"
            )
        file = step.get("state_file")
        if file and (Path(file).name != file or not (folder / file).is_file()):
            raise InputError(f"{path} names the state file {file!r}, which is not in {folder}")
    override = (
        {"device_processor": {"device": "cpu"}} if any(s["registry_name"] == "device_processor" for s in steps) else {}
    )
    ends = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    try:
        return PolicyProcessorPipeline.from_pretrained(
            folder, name, overrides=override, local_files_only=True, **(ends if name == PROCESSORS[1] else {})
        )
    except (SafetensorError, ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be built: {' '.join(str(error).split())}") from None


def _check_statistics(path: Path, config: Any, pipeline: PolicyProcessorPipeline) -> None:
    """LeRobot passes a feature without statistics through as it is; here that is an error."""
    for step in pipeline.steps:
        if not hasattr(step, "norm_map"):
            continue
        wanted = config.output_features if path.name == PROCESSORS[1] else config.input_features
        for key, feature in wanted.items():
            mode = step.norm_map.get(feature.type)
            needed = STATISTICS.get(mode.name, ()) if mode else ()
            missing = [name for name in needed if name not in step._tensor_stats.get(key, {})]
            if missing:
                raise InputError(
                    f"{path} normalises {key!r} by {mode.name} without its {' and '.join(missing)}; save the checkpoint again "
                    "with the statistics of its dataset"
                )


def _affine(folder: Path, post: PolicyProcessorPipeline, dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and offset of `action = scale * x + offset`, read off the postprocessor itself."""
    rows = torch.tensor([0.0, 1.0, -2.0])[:, None].expand(3, dim)
    zero, one, minus = (post(row[None].clone())[0].double() for row in rows)
    scale = one - zero
    if zero.shape != (dim,) or not torch.allclose(
        minus, zero - 2 * scale, rtol=1e-4, atol=1e-4 * float(scale.abs().max())
    ):
        raise InputError(
            f"{folder / PROCESSORS[1]} is not a scale and an offset per dimension; gpc composes only those"
        )
    return tuple(scale.tolist()), tuple(zero.tolist())


def _raw_shapes(config: Any, pre: PolicyProcessorPipeline) -> dict[str, tuple[int, ...]]:
    """What the environment must offer: keys before the preprocessor's renaming, images as (height, width, channels)."""
    raw: dict[str, str] = {}
    for step in pre.steps:
        raw |= {new: old for old, new in getattr(step, "rename_map", {}).items()}
    shapes = {}
    for key, feature in config.input_features.items():
        shape = tuple(feature.shape)
        shapes[raw.get(key, key)] = (*shape[1:], shape[0]) if feature.type is FeatureType.VISUAL else shape
    return shapes


def _load_model(folder: Path, config: Any) -> Any:
    # the file has all weights: nothing is fetched for them
    given = {"pretrained_backbone_weights": None, "load_vlm_weights": False, "compile_model": False}
    for field in given.keys() & vars(config).keys():
        setattr(config, field, given[field])
    try:
        model = get_policy_class(config.type)(config)
        load_model(model, folder / WEIGHTS, strict=True)
    except FileNotFoundError:
        raise InputError(f"{folder / WEIGHTS} is missing") from None
    except OSError as error:  # transformers: no such folder, no such repository, no network
        raise InputError(
            f"{folder}: the configuration of vlm_model_name={config.vlm_model_name!r} is not here; put its files into a folder "
            f"and name that in {CONFIG} ({str(error).splitlines()[0]})"
        ) from None
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({reason}); it is cut short or of another network"
        ) from None
    return model.eval().requires_grad_(False)


def _name(folder: Path) -> str:
    """The run's own name: the nearest folder whose name is not one that `lerobot-train` gives to all."""
    common = re.compile(r"pretrained_model|checkpoints|last|\d+|snapshots|[0-9a-f]{40}")
    path = folder.absolute()
    return next((part for part in reversed(path.parts[1:]) if not common.fullmatch(part)), path.name)


def _fingerprint(folder: Path) -> str:
    """SHA-256 of the configuration, the processors (normalisers included) and the weights."""
    digest = hashlib.sha256()
    states = [
        step["state_file"] for name in PROCESSORS for step in _read_json(folder / name)["steps"] if "state_file" in step
    ]
    for file in (CONFIG, *PROCESSORS, *sorted(states), WEIGHTS):
        digest.update(file.encode())
        with (folder / file).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
