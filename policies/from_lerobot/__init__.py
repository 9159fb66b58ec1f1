"""LeRobot checkpoints (0.4.4) as policies: `lerobot:FOLDER`, or `lerobot:OWNER/NAME@COMMIT` on the hub.

LeRobot has the network, its pre- and post-processors (normalisation, tokeniser, renaming) and its scheduler. gpc calls
the network at (x, t), and samples and composes itself. `families` has the calls of each policy type, `processors`
builds and checks its files.
"""

from __future__ import annotations

import hashlib
import re
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.processor import PolicyProcessorPipeline
from msgspec import UNSET, Meta, Struct, UnsetType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import Tensor

from gpc.errors import InputError, one_line, reading
from gpc.hub import NOT_FETCHED, offline
from gpc.inert import notice
from gpc.policies.checkpoint import CheckpointPolicy, representation
from gpc.policies.dry_run import dry_run
from gpc.policies.from_lerobot.families import FAMILIES, REFUSED, Family
from gpc.policies.from_lerobot.processors import (
    CONFIG,
    POST,
    PRE,
    WEIGHTS,
    affine,
    load_processors,
    observed,
    raw_shapes,
    read_json,
    read_steps,
)
from gpc.policy.spec import LONGEST, STEPS, ActionSpec, Observation, ObservationSpec
from gpc.rollout.env import TASK, TASK_BYTES, read_text
from gpc.schema import convert
from gpc.score import noise
from gpc.score.denoiser import Denoiser, NetworkDenoiser, no_grad

Length = Annotated[int, Meta(ge=1, le=LONGEST)]


class Sizes(Struct):
    """Settings from which LeRobot builds lists and tables while it reads them."""

    type: str | None = None
    horizon: Length | UnsetType = UNSET
    chunk_size: Length | UnsetType = UNSET
    n_obs_steps: Annotated[int, Meta(ge=1, le=STEPS)] | UnsetType = UNSET
    n_action_steps: Length | UnsetType = UNSET
    num_train_timesteps: Annotated[int, Meta(ge=2, le=noise.STEPS)] | UnsetType = UNSET


@dataclass(frozen=True)
class LeRobotPolicy(CheckpointPolicy):
    """A policy of LeRobot."""

    model: Any
    preprocess: PolicyProcessorPipeline
    family: Family

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Preprocess and encode; images are (batch, n_obs_steps, h, w, channels), uint8."""
        self.observations.check(observation)
        inputs = {key: observation[key] for key in self.observations.shapes}
        rows = {key: _as_lerobot(key, value.flatten(0, 1)) for key, value in inputs.items()}
        batch = self.preprocess(rows)
        count, steps = next(iter(inputs.values())).shape[:2]
        keys = (*observed(self.model.config), *self.family.added)
        network = self.family.bind(self.model, {key: batch[key].unflatten(0, (count, steps)) for key in keys})
        return NetworkDenoiser(no_grad(network), self.schedule, self.family.prediction(self.model.config))


def _as_lerobot(key: str, value: Tensor) -> Tensor | list[str]:
    """Convert images to (rows, channels, h, w) in [0, 1], an instruction to text."""
    if key == TASK:
        return [read_text(row) for row in value.to(torch.uint8).cpu().numpy()]
    return value.movedim(-1, -3).contiguous().float() / 255 if value.dtype == torch.uint8 else value


def load(source: str) -> LeRobotPolicy:
    """Load a checkpoint of `lerobot-train`, or one of the hub at a commit.

    All other files are checked before the weights are read.

    Raises:
        InputError: If a file is missing or damaged, a processor step or statistic is missing or unknown, or the policy
            type has no score.
    """
    folder = find(source)
    with reading(folder):
        return _load(folder)


def _load(folder: Path) -> LeRobotPolicy:
    config = _read_config(folder)
    family = FAMILIES[config.type]
    pre, post = load_processors(folder, config, family.steps)
    scale, offset = affine(folder, post, config.action_feature.shape[0])
    actions = ActionSpec(
        family.horizon(config),
        scale,
        offset,
        start=config.action_delta_indices[0],
        bound=family.bound(config),
        relative=representation(folder, (), "LeRobot's configurations do not"),
    )
    shapes = raw_shapes(folder, config, pre) | ({TASK: (TASK_BYTES,)} if family.language else {})
    observations = ObservationSpec(shapes, config.n_obs_steps)
    model = _load_model(folder, config)
    return LeRobotPolicy(
        _name(folder), _fingerprint(folder), actions, observations, family.schedule(model), model, pre, family
    )


def find(source: str) -> Path:
    """Return the folder of a checkpoint, after a download if it is not a local one.

    Raises:
        InputError: If there is no such folder and no pinned commit, or the hub cannot be reached.
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

    notice(f"fetching {repo} at {revision[:12]} ({CONFIG}, {WEIGHTS}, processors)")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{repo} cannot be fetched ({type(error).__name__}); offline, put its {CONFIG}, {WEIGHTS} and processor files "
            f"into a folder and load lerobot:FOLDER"
        ) from None


def _read_config(folder: Path) -> Any:
    """Read the configuration of a supported policy type and check its settings."""
    content = read_json(folder / CONFIG)
    kind = convert(Sizes, content, str(folder / CONFIG)).type
    if kind in REFUSED:
        raise InputError(f"{folder}: a LeRobot {kind} policy {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise InputError(
            f"{folder}: LeRobot policy type {one_line(repr(kind), 80)} is not supported; gpc reads {', '.join(FAMILIES)}"
        )
    import_module(f"lerobot.policies.{kind}.processor_{kind}")  # registers its processor steps
    with reading(folder / CONFIG):  # draccus raises any exception of a field's parser
        config = PreTrainedConfig.from_pretrained(folder)
    if not config.action_feature or not config.input_features:
        raise InputError(f"{folder / CONFIG} declares no action or no observation")
    refusal = FAMILIES[kind].refusal(config)
    if refusal:
        raise InputError(f"{folder}: {refusal}")
    config.device = "cpu"
    return config


def _load_model(folder: Path, config: Any) -> Any:
    # the file has all weights: nothing is fetched for them
    disabled = {"pretrained_backbone_weights": None, "load_vlm_weights": False, "compile_model": False}
    for field in disabled.keys() & vars(config).keys():
        setattr(config, field, disabled[field])
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder / WEIGHTS} is missing")
    kind, file = get_policy_class(config.type), folder / WEIGHTS
    trial = copy(config)
    trial.device = "meta"  # pi0 moves its network there itself
    try:
        with safe_open(file, "pt") as weights:
            tensors = len(weights.keys())
        with offline():
            dry_run(lambda: kind(trial), tensors, file.stat().st_size, str(folder / CONFIG))
            model = kind(config)
    except SafetensorError as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}); it is cut short or of another network") from None
    except (OSError, ValueError, TypeError, KeyError) as error:  # transformers: no such folder, no network
        raise InputError(
            f"{folder / CONFIG}: LeRobot cannot build this network{_named(config)} ({one_line(error)}); {NOT_FETCHED}"
        ) from None
    try:
        load_model(model, folder / WEIGHTS, strict=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{folder / WEIGHTS} cannot be read ({one_line(error)}); it is cut short or of another network"
        ) from None
    return model.eval().requires_grad_(False)


def _named(config: Any) -> str:
    """Return the model that a configuration names, for an error."""
    name = getattr(config, "vlm_model_name", None)
    return f" from {name!r}" if name else ""


def _name(folder: Path) -> str:
    """Return the nearest folder name that `lerobot-train` does not give to all runs."""
    common = re.compile(r"pretrained_model|checkpoints|last|\d+|snapshots|[0-9a-f]{40}")
    path = folder.absolute()
    return next((part for part in reversed(path.parts[1:]) if not common.fullmatch(part)), path.name)


def _fingerprint(folder: Path) -> str:
    """Return the SHA-256 of configuration, processors and weights."""
    digest = hashlib.sha256()
    states = [step.state_file for name in (PRE, POST) for step in read_steps(folder / name) if step.state_file]
    for file in (CONFIG, PRE, POST, *sorted(states), WEIGHTS):
        digest.update(file.encode())
        with (folder / file).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
