"""LeRobot checkpoints (0.4.4 and 0.6) as policies: `lerobot:FOLDER`, or `lerobot:OWNER/NAME@COMMIT` on the hub.

LeRobot has the network, its pre- and post-processors (normalisation, tokeniser, renaming) and its scheduler. gpc calls
the network at (x, t), and samples and composes itself. `families` has the calls of each policy type, `processors`
builds and checks its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.processor import DeviceProcessorStep, NormalizerProcessorStep, PolicyProcessorPipeline
from msgspec import UNSET, Meta, Struct, UnsetType
from torch import Tensor

from gpc.errors import InputError, one_line, reading
from gpc.hub import NOT_FETCHED, offline
from gpc.inference.modules import module_on
from gpc.policies.checkpoint import CheckpointPolicy
from gpc.policies.dry_run import dry_run
from gpc.policies.from_lerobot.families import FAMILIES, REFUSED, Family
from gpc.policies.from_lerobot.files import check_version, find, fingerprint, policy_name, read_weights, weight_files
from gpc.policies.from_lerobot.processors import CONFIG, affine, load_processors, observed, raw_shapes, read_json
from gpc.policy.observation import TASK, TASK_BYTES, read_text
from gpc.policy.spec import LONGEST, STEPS, ActionSpec, Dtype, Observation, ObservationSpec
from gpc.schema import convert
from gpc.score import noise
from gpc.score.denoiser import Denoiser, NetworkDenoiser, Prediction, no_grad

Length = Annotated[int, Meta(ge=1, le=LONGEST)]


class Sizes(Struct):
    """Settings from which LeRobot builds lists and tables while it reads them."""

    type: str | None = None
    horizon: Length | UnsetType = UNSET
    chunk_size: Length | UnsetType = UNSET
    n_obs_steps: Annotated[int, Meta(ge=1, le=STEPS)] | UnsetType = UNSET
    n_action_steps: Length | UnsetType = UNSET
    num_train_timesteps: Annotated[int, Meta(ge=2, le=noise.STEPS)] | UnsetType = UNSET


@dataclass(frozen=True, repr=False)
class LeRobotPolicy(CheckpointPolicy):
    """A policy of LeRobot."""

    model: Any
    preprocess: PolicyProcessorPipeline
    family: Family
    prediction: Prediction

    @torch.inference_mode()
    def condition(self, observation: Observation) -> Denoiser:
        """Preprocess and encode; images are (batch, n_obs_steps, h, w, channels), uint8."""
        inputs = self.observations.read(observation)
        rows = {key: self._as_lerobot(key, value) for key, value in inputs.items()}
        batch = self.preprocess(rows)
        count, steps = next(iter(inputs.values())).shape[:2]
        keys = (*observed(self.model.config), *self.family.added)
        device = next(self.model.parameters()).device
        rows = {key: batch[key].to(device).unflatten(0, (count, steps)) for key in keys}
        network, condition = self.family.bind(self.model, rows)
        return NetworkDenoiser(no_grad(network), self.schedule, self.prediction, condition=condition)

    def to(self, device: torch.device, dtype: Dtype | None) -> LeRobotPolicy:
        """Return the policy with its network on a device, see `gpc.policy.spec.Movable`.

        Images are converted and normalised there.
        """
        model: Any = module_on(self.model, device, dtype)
        model.config.device = str(device)
        preprocess = copy(self.preprocess)
        preprocess.steps = [_step_on(step, device) for step in preprocess.steps if not _only_moves(step)]
        return replace(self, model=model, preprocess=preprocess)

    def _as_lerobot(self, key: str, value: Tensor) -> Tensor | list[str]:
        """Convert images to (rows, channels, h, w) in [0, 1], an instruction to text."""
        if key == TASK:
            return [read_text(row) for row in value.numpy().reshape(-1, value.shape[-1])]
        value = value.flatten(0, 1)
        return value.movedim(-1, -3).contiguous().float() / 255 if key in self.observations.images else value


def _only_moves(step: Any) -> bool:
    """Return whether a step has no effect on observations that are on their device."""
    return isinstance(step, DeviceProcessorStep) and step.float_dtype is None


def _step_on(step: Any, device: torch.device) -> Any:
    """Return a step of a preprocessor on a device."""
    if isinstance(step, DeviceProcessorStep):
        return replace(step, device=str(device))
    if isinstance(step, NormalizerProcessorStep):
        step = copy(step)
        step._tensor_stats = {
            key: {name: value.to(device) for name, value in statistics.items()}
            for key, statistics in step._tensor_stats.items()
        }
    return step


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
    check_version(folder)
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
    )
    shapes, images = raw_shapes(folder, config, pre)
    text = {TASK: (TASK_BYTES,)} if family.language else {}
    observations = ObservationSpec(shapes | text, config.n_obs_steps, images)
    model = _load_model(folder, config)
    return LeRobotPolicy(
        policy_name(folder),
        fingerprint(folder),
        actions,
        observations,
        family.schedule(model),
        model,
        pre,
        family,
        family.prediction(config),
        n_action_steps=config.n_action_steps,
        folder=folder,
        sampling=family.sampling(config),
    )


def _read_config(folder: Path) -> Any:
    """Read the configuration of a supported policy type and check its settings."""
    content = read_json(folder / CONFIG)
    kind = convert(Sizes, content, str(folder / CONFIG)).type
    if kind is None:
        raise InputError(
            f"{folder / CONFIG} has no policy type, as LeRobot wrote it before 2025; LeRobot 0.4.4 and its migration do not "
            "read it either, so train the policy again"
        )
    if kind in REFUSED:
        raise InputError(f"{folder}: a LeRobot {kind} policy {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise InputError(
            f"{folder}: LeRobot policy type {one_line(repr(kind), 80)} is not supported; gpc reads {', '.join(FAMILIES)}"
        )
    if not find_spec(f"lerobot.policies.{kind}"):
        raise InputError(f"{folder}: this LeRobot has no {kind} policy; LeRobot 0.6 (Python 3.12 and later) has")
    with _extras(kind):
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
    kind, files, family = get_policy_class(config.type), weight_files(folder), FAMILIES[config.type]
    weights = read_weights(files)
    trial = copy(config)
    trial.device = "meta"  # pi0 moves its network there itself
    size = sum(file.stat().st_size for file in files)
    try:
        with offline(), _extras(config.type), family.building():
            dry_run(lambda: kind(trial), weights, size, str(folder / CONFIG), family.renamed)
            model = kind(config)
    except (OSError, ValueError, TypeError, KeyError) as error:  # transformers: no such folder, no network
        raise InputError(
            f"{folder / CONFIG}: LeRobot cannot build this network{_named(config)} ({one_line(error)}); {NOT_FETCHED}"
        ) from None
    weights = family.renamed(model, weights)
    if family.in_stored_dtype:
        for name, parameter in model.named_parameters(remove_duplicate=False):
            parameter.data = parameter.data.to(weights.get(name, parameter).dtype)
    model.load_state_dict(weights, strict=False)  # a weight with several names is stored once
    return model.eval().requires_grad_(False)


@contextmanager
def _extras(kind: str) -> Iterator[None]:
    """Name the command that installs the packages of a policy type."""
    try:
        yield
    except ImportError as error:
        extra = FAMILIES[kind].extra or kind.replace("_", "-")
        raise InputError(
            f"a LeRobot {kind} policy needs packages that are missing ({one_line(error)}): pip install 'lerobot[{extra}]'"
        ) from None


def _named(config: Any) -> str:
    """Return the model that a configuration names, for an error."""
    name = getattr(config, "vlm_model_name", None) or getattr(config, "text_encoder_name", None)
    return f" from {name!r}" if name else ""
