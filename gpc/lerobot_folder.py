"""The folder of a LeRobotDataset, checked before LeRobot opens it; nothing is requested from the hub.

meta/      info.json, tasks.parquet, episodes/chunk-000/file-000.parquet, ...
data/      chunk-000/file-000.parquet, ...
videos/    <key>/chunk-000/file-000.mp4, ...
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from gpc import schema
from gpc.errors import InputError, one_line, reading
from gpc.hub import offline
from gpc.installation import install
from gpc.types import Array

INFO, INFO_1 = "meta/info.json", "meta_data/info.json"  # the second is that of versions 1
VERSION = "v3.0"
PATHS = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
"""Settings of info.json that LeRobot follows, and their value in every data set that it writes."""
EPISODE, TASK = "episode_index", "task"


class Feature(Struct):
    """A column of a data set."""

    dtype: str
    shape: tuple[int, ...]


class Info(Struct):
    """The checked fields of `meta/info.json`."""

    features: dict[str, Feature]
    total_episodes: int
    total_frames: int


class Version(Struct):
    """The field that all versions have."""

    codebase_version: str


def is_lerobot(path: Path) -> bool:
    """Return whether a folder is that of a LeRobotDataset, of any version."""
    return (path / INFO).exists() or (path / INFO_1).exists()


def read_info(path: Path) -> Info:
    """Read what a data set declares, after a check of its version.

    Raises:
        InputError: If the version is not v3.0, or a declaration is damaged or leads out of the folder.
    """
    if not (path / INFO).exists():
        raise InputError(f"{path} is a LeRobotDataset of version v1; record it again, LeRobot converts v2.1 only")
    content = schema.read(dict[str, Any], path / INFO)
    version = schema.convert(Version, content, str(path / INFO)).codebase_version
    if not re.match(r"v?3\.", version):
        raise InputError(f"{path} is a LeRobotDataset of version {one_line(version, 20)}; {_fix(path, version)}")
    paths = {key: content.get(key) for key in PATHS}
    info = schema.convert(Info, content, str(path / INFO))
    if any(value not in (None, PATHS[key]) for key, value in paths.items()) or any("/" in key for key in info.features):
        raise InputError(f"{path / INFO} names other paths than LeRobot writes; gpc follows none of them")
    return info


def _fix(path: Path, version: str) -> str:
    folder = path.absolute()
    if re.match(r"v?2\.1", version):
        module, root = _converter(folder)
        options = f"--repo-id={shlex.quote(folder.name)} --root={shlex.quote(str(root))} --push-to-hub=false"
        return f"convert it in place by `python -m {module} {options}`"
    if re.match(r"v?[012]\.", version):
        return "convert it to v2.1 with LeRobot 0.3 first, then to v3.0 with LeRobot 0.4"
    return f"gpc reads {VERSION} (LeRobot 0.4 to 0.6)"


def _converter(folder: Path) -> tuple[str, Path]:
    """Return the module of the installed LeRobot that converts v2.1, and its root."""
    newer = "lerobot.scripts.convert_dataset_v21_to_v30", folder
    try:
        return newer if find_spec(newer[0]) else ("lerobot.datasets.v30.convert_dataset_v21_to_v30", folder.parent)
    except ImportError:  # there is no LeRobot
        return newer


def open_folder(path: Path) -> Any:
    """Return the `LeRobotDataset` of a folder.

    Raises:
        InputError: If LeRobot is not installed, or the data set is of another version, damaged or incomplete.
    """
    try:
        lerobot: Any = import_module("lerobot.datasets.lerobot_dataset")
    except ImportError as error:
        raise InputError(f"{path} needs LeRobot ({error}): {install('lerobot')}") from None
    info, name = read_info(path), f"local/{path.name}"
    for part in ("meta/tasks.parquet", "meta/episodes/*/*.parquet", "data/*/*.parquet"):
        if not any(path.glob(part)):
            raise InputError(_incomplete(path, f"{part} is missing"))
    try:
        with offline():
            meta = lerobot.LeRobotDatasetMetadata(name, root=path)
            _check_complete(path, info, meta)
            return lerobot.LeRobotDataset(name, root=path)
    except InputError:
        raise
    except Exception as error:  # any exception of LeRobot, datasets and pyarrow
        raise InputError(
            f"{path} is a LeRobotDataset that cannot be read ({one_line(error)}); nothing is fetched"
        ) from None


def _check_complete(path: Path, info: Info, meta: Any) -> None:
    """Check that all files of all episodes are there, and hold all steps."""
    episodes = range(info.total_episodes)
    if len(meta.episodes) != len(episodes):
        raise InputError(_incomplete(path, f"meta/episodes has {len(meta.episodes)} of {len(episodes)} episodes"))
    files = {str(meta.get_data_file_path(i)) for i in episodes}
    videos = {str(meta.get_video_file_path(i, key)) for i in episodes for key in meta.video_keys}
    missing = sorted(file for file in files | videos if not (path / file).is_file())
    if missing:
        raise InputError(_incomplete(path, f"{missing[0]} is missing, {len(missing)} of {len(files | videos)} files"))
    parquet: Any = import_module("pyarrow.parquet")
    steps = sum(parquet.read_metadata(path / file).num_rows for file in files)
    if steps != info.total_frames:
        raise InputError(_incomplete(path, f"data has {steps} of {info.total_frames} steps"))


def _incomplete(path: Path, what: str) -> str:
    return f"{path} is an incomplete LeRobotDataset ({what}); copy or fetch the whole folder again, nothing is fetched here"


def read_columns(path: Path, names: Sequence[str]) -> dict[str, Array]:
    """Read columns of a data set, (steps, *shape).

    Images are uint8 with channels last; `TASK` is the instruction of each step, (steps,) text.

    Raises:
        InputError: If the data set cannot be read.
    """
    dataset = open_folder(path)
    with reading(path), offline():
        stored = {name: "task_index" if name == TASK else name for name in names}
        needs_videos = bool(set(names) & set(dataset.meta.video_keys))  # the data set itself decodes all of them
        steps = dataset if needs_videos else dataset.hf_dataset.select_columns([*stored.values()])
        cameras: Sequence[str] = dataset.meta.camera_keys
        columns: dict[str, list[Array]] = {name: [] for name in names}
        for row in (steps[i] for i in range(len(dataset))):
            for name, key in stored.items():
                columns[name].append(_image(row[key]) if key in cameras else row[key].numpy())
        arrays = {name: np.stack(values) for name, values in columns.items()}
        if TASK in arrays:
            arrays[TASK] = np.array([str(dataset.meta.tasks.iloc[int(i)].name) for i in arrays[TASK]])
        return arrays


def _image(value: Any) -> Array:
    """Return an image (3, height, width) in [0, 1] as bytes with channels last."""
    image: Array = np.round(255 * value.numpy().transpose(1, 2, 0)).astype(np.uint8)
    return image
