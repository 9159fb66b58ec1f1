"""LeRobot's pre- and post-processors, built from checked files and read as specs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import (
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import ACTION, OBS_IMAGES
from msgspec import Meta, Struct, field

from gpc import schema
from gpc.errors import InputError, one_line
from gpc.hub import NOT_FETCHED, offline
from gpc.inert import notice

PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"
CONFIG, WEIGHTS = "config.json", "model.safetensors"

# A processor file may name any class of any module; LeRobot would import it. Only known steps of LeRobot are built, and after
# sampling only those that are a scale and an offset.
STEPS = {
    PRE: frozenset(
        {
            "device_processor",
            "normalizer_processor",
            "pi0_new_line_processor",
            "pi05_prepare_state_tokenizer_processor_step",
            "relative_actions_processor",
            "rename_observations_processor",
            "smolvla_new_line_processor",
            "to_batch_processor",
            "tokenizer_processor",
            "xvla_add_domain_id",
            "xvla_image_to_float",
            "xvla_imagenet_normalize",
        }
    ),
    POST: frozenset({"absolute_actions_processor", "device_processor", "unnormalizer_processor"}),
}
SWITCHED = frozenset(
    {"absolute_actions_processor", "relative_actions_processor"}
)  # LeRobot 0.6 writes them, switched off
STATISTICS = {
    "IDENTITY": (),
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
EMPTY_CAMERA = f"{OBS_IMAGES}.empty_camera_"


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file of a checkpoint.

    Raises:
        InputError: If there is no such file, or no object in it.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; a LeRobot checkpoint has {CONFIG}, {WEIGHTS}, {PRE} and {POST}")
    return schema.read(dict[str, Any], path)


class Step(Struct):
    """The checked fields of a processor's step."""

    registry_name: str | None = None
    outside: str | None = field(default=None, name="class")
    state_file: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


class Steps(Struct):
    """A processor's file."""

    steps: Annotated[list[Step], Meta(max_length=64)]


def read_steps(path: Path) -> list[Step]:
    """Read the steps of a processor's file.

    Raises:
        InputError: If it has none.
    """
    return schema.convert(Steps, read_json(path), str(path)).steps


def observed(config: Any) -> dict[str, PolicyFeature]:
    """Return the input features without the empty cameras that LeRobot fills in."""
    return {key: feature for key, feature in config.input_features.items() if not key.startswith(EMPTY_CAMERA)}


def load_processors(
    folder: Path, config: Any, needed: frozenset[str]
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Build the pre- and the postprocessor of a checkpoint.

    Args:
        folder: the checkpoint.
        config: its configuration.
        needed: steps that the preprocessor must have.

    Raises:
        InputError: If a step is unknown or missing, its file is not in the folder, or its normalisation is not that of
            the configuration.
    """
    pre, post = (_load(folder, name) for name in (PRE, POST))
    lacking = sorted(needed - {str(step.registry_name) for step in read_steps(folder / PRE)})
    if lacking:
        raise InputError(
            f"{folder / PRE} has no step {lacking[0]!r}, which a LeRobot {config.type} policy cannot do without"
        )
    _check_normalisation(folder / PRE, config, observed(config), pre)
    _check_normalisation(folder / POST, config, config.output_features, post)
    return pre, post


def _load(folder: Path, name: str) -> PolicyProcessorPipeline:
    path = folder / name
    steps = read_steps(path)
    for step in steps:
        if step.registry_name not in STEPS[name]:
            where = " after sampling" if name == POST else ""
            raise InputError(
                f"{path} has the step {one_line(repr(step.registry_name or step.outside), 80)}; supported{where} are "
                f"{', '.join(sorted(STEPS[name]))}"
            )
        if step.registry_name in SWITCHED and step.config.get("enabled"):
            raise InputError(
                f"{path} enables {step.registry_name}: actions relative to a state are no scale and offset"
            )
        file = step.state_file
        if file and (Path(file).name != file or not (folder / file).is_file()):
            raise InputError(f"{path} names the state file {one_line(repr(file), 80)}, which is not in {folder}")
    on_cpu = {"device_processor": {"device": "cpu"}}
    overrides = on_cpu if any(step.registry_name == "device_processor" for step in steps) else {}
    ends = {"to_transition": policy_action_to_transition, "to_output": transition_to_policy_action}
    try:
        with offline():
            return PolicyProcessorPipeline.from_pretrained(
                folder, name, overrides=overrides, local_files_only=True, **(ends if name == POST else {})
            )
    except Exception as error:  # any exception of LeRobot, draccus, safetensors and transformers
        missing = isinstance(error, OSError) or isinstance(error.__cause__, OSError)
        fix = f"; {NOT_FETCHED}" if missing else ""
        raise InputError(f"{path} cannot be read: {one_line(error)}{fix}") from None


def _check_normalisation(
    path: Path, config: Any, features: Mapping[str, PolicyFeature], pipeline: PolicyProcessorPipeline
) -> None:
    """Check that every declared normalisation is done; LeRobot skips it silently."""
    normalisers = [
        step for step in pipeline.steps if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep)
    ]
    if FeatureType.ACTION.value not in config.normalization_mapping:
        raise InputError(f"{path.parent / CONFIG}: normalization_mapping has no entry for ACTION")
    for key, feature in features.items():
        declared = config.normalization_mapping.get(feature.type.value, NormalizationMode.IDENTITY).name
        done = [(_mode(step, key, feature), step._tensor_stats.get(key, {})) for step in normalisers]
        modes = [mode for mode, _ in done if mode != "IDENTITY"] or ["IDENTITY"]
        if modes != [declared]:
            raise InputError(f"{path} normalises {key!r} by {' and '.join(modes)}, {CONFIG} declares {declared}")
        for mode, statistics in done:
            _check_statistics(path, key, feature, mode, statistics)


def _mode(step: Any, key: str, feature: PolicyFeature) -> str:
    chosen = step.normalize_observation_keys
    skipped = key not in step.features or (chosen is not None and key != ACTION and key not in chosen)
    mode = NormalizationMode.IDENTITY if skipped else step.norm_map.get(feature.type, NormalizationMode.IDENTITY)
    return str(mode.name)


def _check_statistics(
    path: Path, key: str, feature: PolicyFeature, mode: str, statistics: Mapping[str, torch.Tensor]
) -> None:
    missing = [name for name in STATISTICS[mode] if name not in statistics]
    if missing:
        raise InputError(
            f"{path} normalises {key!r} by {mode} without its {' and '.join(missing)}; save the checkpoint again with the "
            "statistics of its dataset"
        )
    for name in STATISTICS[mode]:
        shape = tuple(statistics[name].shape)
        if feature.type is not FeatureType.VISUAL and shape != tuple(feature.shape):
            raise InputError(f"{path}: the {name} of {key!r} has shape {shape}, {CONFIG} has {tuple(feature.shape)}")


def affine(folder: Path, post: PolicyProcessorPipeline, dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure scale and offset of `action = scale * x + offset` on the postprocessor."""
    rows = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)[:, None].expand(3, dim)
    zero, one, minus = (post(row[None].clone())[0].double() for row in rows)
    scale = one - zero
    if zero.shape != (dim,) or not torch.allclose(
        minus, zero - 2 * scale, rtol=1e-4, atol=1e-4 * float(scale.abs().max())
    ):
        raise InputError(f"{folder / POST} is not a scale and an offset per dimension; gpc composes only those")
    return tuple(scale.tolist()), tuple(zero.tolist())


def raw_shapes(folder: Path, config: Any, pre: PolicyProcessorPipeline) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the shapes of the environment's observations, and which are images.

    Images have their channels last. The keys are those before the preprocessor's renaming. If it renames some cameras
    only, a notice names the others, since LeRobot would silently run without them.

    Raises:
        InputError: If the renaming removes a key that the network reads.
    """
    features, source = observed(config), _renames(folder, config, pre)
    cameras = [key for key, feature in features.items() if feature.type is FeatureType.VISUAL]
    alone = [key for key in cameras if key not in source]
    if len(alone) < len(cameras):
        for key in alone:
            notice(
                f"{folder / PRE} renames cameras, but none to {key!r}; an environment must offer it, or "
                f"'rename_map={{{key}: ITS KEY}}'; if it was trained without, take it out of input_features in {CONFIG}"
            )
    shapes = {}
    for key, feature in features.items():
        shape = tuple(feature.shape)
        shapes[source.get(key, key)] = (*shape[1:], shape[0]) if key in cameras else shape
    return shapes, [source.get(key, key) for key in cameras]


def _renames(folder: Path, config: Any, pre: PolicyProcessorPipeline) -> dict[str, str]:
    """Return the preprocessor's renaming: the network's key -> the environment's key."""
    maps = [step.rename_map for step in pre.steps if isinstance(step, RenameObservationsProcessorStep)]
    if len(maps) > 1:
        raise InputError(f"{folder / PRE} renames {len(maps)} times; write one rename_observations_processor")
    source = {new: old for names in maps for old, new in names.items()}
    for key in observed(config):
        if key in source.values() and key not in source:
            to = next(new for new, old in source.items() if old == key)
            raise InputError(
                f"{folder / PRE} renames {key!r} to {to!r}, and {CONFIG} reads {key!r}, which nothing provides then; "
                "name its source in rename_map there"
            )
    return source
