"""The files of a LeRobot checkpoint: where they lie, and whether this version of LeRobot wrote them."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gpc.errors import InputError, one_line
from gpc.inert import notice
from gpc.policies.checkpoint import unwrapped
from gpc.policies.from_lerobot.processors import CONFIG, POST, PRE, WEIGHTS, read_steps
from gpc.policy.sources import check_source

INNER = "pretrained_model"
ADAPTER = "adapter_config.json"
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
NORMALISERS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")  # among the weights before 0.4


def find(source: str) -> Path:
    """Return the folder of a checkpoint, after a download if it is not a local one.

    The folder of a training stands for its last checkpoint, with a notice.

    Raises:
        InputError: If there is no such folder and no pinned commit, or the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _last(folder)
    check_source(f"lerobot:{source}")
    repo, _, revision = source.partition("@")
    from huggingface_hub import snapshot_download

    notice(f"fetching {repo} at {revision[:12]} ({CONFIG}, {WEIGHTS}, processors)")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{repo} cannot be fetched ({type(error).__name__}); offline, put its {CONFIG}, {WEIGHTS} and processor files "
            f"into a folder and load lerobot:FOLDER"
        ) from None


def _last(folder: Path) -> Path:
    """Return the checkpoint of a step or the last one of a training, or the folder."""
    if (folder / INNER).is_dir():
        return folder / INNER
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    steps = [path for path in checkpoints.glob(f"*/{INNER}") if path.parent.name.isdecimal()]
    linked = checkpoints / "last" / INNER
    if (folder / CONFIG).is_file() or not (steps or linked.is_dir()):
        return folder
    last = linked if linked.is_dir() else max(steps, key=lambda path: int(path.parent.name))
    notice(f"{folder} is a training; its last checkpoint is used, {last.resolve()}")
    return last


def check_version(folder: Path) -> None:
    """Refuse a checkpoint of another version or form, with what makes it readable.

    Raises:
        InputError: If the folder holds an adapter without its base, or the normalisers are among the weights.
    """
    if (folder / ADAPTER).is_file() and not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} holds an adapter ({ADAPTER}) for the weights of another checkpoint; merge them with peft's "
            "`merge_and_unload` (docs/lerobot.md) and load the merged folder"
        )
    if not (folder / PRE).is_file() and any(name.startswith(NORMALISERS) for name in _names(folder)):
        raise InputError(
            f"{folder} was saved by LeRobot before 0.4, with the normalisers among the weights; convert it by `python -m "
            f"lerobot.processor.migrate_policy_normalization --pretrained-path {shlex.quote(str(folder))}` and load "
            f"{folder.name}_migrated, which that writes beside it"
        )


def _names(folder: Path) -> Sequence[str]:
    """Return the names of the weights; none if they cannot be read."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as weights:
            return list(weights.keys())
    except (OSError, SafetensorError):
        return []


def weight_files(folder: Path) -> list[Path]:
    """Return the file of the weights, or the files of their numbered parts.

    Raises:
        InputError: If one is missing.
    """
    names = [WEIGHTS]
    parts = [part for part in map(SHARD.fullmatch, sorted(path.name for path in folder.iterdir())) if part]
    if parts and not (folder / WEIGHTS).is_file():
        names = [f"model-{i:05d}-of-{parts[0][1]}.safetensors" for i in range(1, int(parts[0][1]) + 1)]
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing")
    return [folder / name for name in names]


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """Read the weights of all files, without the prefixes of wrappers.

    Raises:
        InputError: If a file is damaged, or two weights have one name.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({one_line(error)}); it is cut short") from None
    return unwrapped(weights, files[0].parent)


def policy_name(folder: Path) -> str:
    """Return the nearest folder name that `lerobot-train` does not give to all runs."""
    common = re.compile(rf"{INNER}|checkpoints|last|\d+|snapshots|[0-9a-f]{{40}}")
    path = folder.absolute()
    return next((part for part in reversed(path.parts[1:]) if not common.fullmatch(part)), path.name)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of configuration, processors and weights."""
    digest = hashlib.sha256()
    states = [step.state_file for file in (PRE, POST) for step in read_steps(folder / file) if step.state_file]
    for file in (CONFIG, PRE, POST, *sorted(states), *(file.name for file in weight_files(folder))):
        digest.update(file.encode())
        with (folder / file).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
