"""Demonstrations on disk: readers and writers of three layouts.

    robomimic's HDF5        data/demo_0/{obs/<key>, actions, rewards, dones}, mask/<name>  (Mandlekar et al. 2021)
    a replay buffer         zarr, folder or .zip: data/<key>, data/action, meta/episode_ends  (Chi et al. 2023)
    a LeRobotDataset        a local folder with meta/info.json, read by LeRobot itself

Nothing is downloaded and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from gpc.errors import InputError, one_line
from gpc.installation import install
from gpc.lerobot_folder import EPISODE, TASK, is_lerobot, open_folder, read_columns, read_info
from gpc.stored_arrays import Budget, hdf5_child, read_hdf5, read_zarr
from gpc.types import Array

Choose = Callable[[Mapping[str, tuple[int, ...]]], Mapping[str, str]]
PAD = 7  # Diffusion Policy's: a chunk of 16 of which 8 are executed
ACTION = "action"  # a replay buffer's and a LeRobotDataset's name of the actions
OBSERVATION = "observation."  # before a LeRobotDataset's names of observations
FORMAT_ERRORS = (
    OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, NotImplementedError,
    zipfile.BadZipFile, zarr.errors.BaseZarrError,
)  # fmt: skip
"""Exceptions of h5py, zarr and its codecs for files of another format."""


@dataclass(frozen=True)
class Demonstrations:
    """Episodes end to end.

    Attributes:
        observations: key -> (steps, *shape); instructions are text.
        actions: (steps, dim); `actions[t]` was taken after `observations[key][t]`.
        episode_ends: (episodes,); episode i has the steps `[episode_ends[i - 1], episode_ends[i])`.

    Raises:
        InputError: If lengths differ or the ends do not increase.
    """

    observations: Mapping[str, Array]
    actions: Array
    episode_ends: Array

    def __post_init__(self) -> None:
        if self.actions.ndim != 2 or self.episode_ends.ndim != 1 or self.episode_ends.dtype.kind not in "iu":
            raise InputError("demonstrations: actions have two dimensions, episode_ends are whole numbers in one")
        steps, ends = len(self.actions), self.episode_ends.astype(np.int64)
        if len(ends) == 0 or ends[-1] != steps or (np.diff(ends, prepend=0) <= 0).any():
            raise InputError(f"demonstrations: episode_ends {_short(ends)} do not divide {steps} actions into episodes")
        for key, value in self.observations.items():
            if len(value) != steps:
                raise InputError(f"demonstrations: {key!r} has {len(value)} steps, the actions have {steps}")

    @property
    def episodes(self) -> list[slice]:
        """Steps of each episode."""
        return [slice(int(a), int(b)) for a, b in zip([0, *self.episode_ends[:-1]], self.episode_ends, strict=True)]

    def select(self, episodes: Sequence[int]) -> Demonstrations:
        """Return some of the episodes."""
        chosen = [self.episodes[i] for i in episodes]
        rows = np.concatenate([np.arange(steps.start, steps.stop) for steps in chosen])
        ends = np.cumsum([steps.stop - steps.start for steps in chosen])
        return Demonstrations({key: value[rows] for key, value in self.observations.items()}, self.actions[rows], ends)

    @property
    def fingerprint(self) -> str:
        """Hash of observations, actions and ends, for run manifests."""
        digest = hashlib.sha256()
        for value in (self.episode_ends, self.actions, *(self.observations[key] for key in sorted(self.observations))):
            digest.update(np.ascontiguousarray(value).data)
        return digest.hexdigest()

    def windows(self, n_obs_steps: int, start: int, horizon: int) -> tuple[Array, Array]:
        """Return the steps of observations and actions that belong to each decision.

        At the edges of an episode its first and last steps are repeated; a chunk ends at most `PAD` steps after the
        episode.

        Args:
            n_obs_steps: observations of a decision.
            start: first step of a chunk, from the newest observation (`ActionSpec.start`).
            horizon: steps of a chunk.

        Returns:
            Steps of observations (n, n_obs_steps) and of actions (n, horizon).
        """
        observed, acted = [], []
        for steps in self.episodes:
            for now in range(steps.start, max(steps.start, steps.stop - 1 + PAD - start - horizon + 1) + 1):
                observed.append(np.arange(now - n_obs_steps + 1, now + 1).clip(steps.start, steps.stop - 1))
                acted.append(np.arange(now + start, now + start + horizon).clip(steps.start, steps.stop - 1))
        return np.stack(observed), np.stack(acted)


def check(path: str | Path) -> Path:
    """Check that a path exists and, of a LeRobotDataset, the version.

    Raises:
        InputError: If there is nothing, or a data set of another version.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if is_lerobot(path):
        read_info(path)
    return path


def read(path: str | Path, keys: Sequence[str] | Choose | None = None) -> Demonstrations:
    """Read demonstrations of any of the three layouts.

    Args:
        path: file or folder.
        keys: observation keys to read, None for all; or a function that takes the shape of each key at one time, and returns
            the file's key by the key to read.

    Raises:
        InputError: If the path has another layout or version, is damaged, incomplete or lacks a key.
    """
    path = check(path)
    layout = _read_robomimic
    if path.is_dir() or path.suffix == ".zip":
        layout = _read_lerobot if is_lerobot(path) else _read_replay_buffer
    return layout(path, keys if callable(keys) else partial(_choose, path, keys))


def write_robomimic(
    path: Path,
    demonstrations: Demonstrations,
    rewards: Array,
    environment: Mapping[str, Any],
    notes: Sequence[Mapping[str, Any]],
    held_out: Sequence[int] = (),
) -> None:
    """Write robomimic's HDF5 atomically.

    The file has no "next_obs": set `train.hdf5_load_next_obs=false`, the default of robomimic's diffusion policy.

    Args:
        path: file to write.
        demonstrations: episodes.
        rewards: (steps,).
        environment: description of the simulator for robomimic's tools ("env_name", "type", "env_kwargs").
        notes: attributes of each episode.
        held_out: episodes of the filter key "valid"; the others are "train".
    """
    h5py = _h5py(path)
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w") as file:
        data = file.create_group("data")
        data.attrs["total"], data.attrs["env_args"] = len(demonstrations.actions), json.dumps(environment)
        for i, (steps, note) in enumerate(zip(demonstrations.episodes, notes, strict=True)):
            episode = data.create_group(f"demo_{i}")
            episode.attrs.update({"num_samples": steps.stop - steps.start, **note})
            episode["actions"], episode["rewards"] = demonstrations.actions[steps], rewards[steps]
            episode["dones"] = np.arange(steps.start + 1, steps.stop + 1) == steps.stop
            for key, value in demonstrations.observations.items():
                episode.create_dataset(f"obs/{key}", data=value[steps], compression=_compression(value))
        for name, valid in {"train": False, "valid": True}.items():
            file[f"mask/{name}"] = np.array([f"demo_{i}" for i in range(len(notes)) if (i in held_out) == valid], "S")
    part.replace(path)


def write_replay_buffer(path: Path, demonstrations: Demonstrations) -> None:
    """Write a zarr replay buffer as a folder or .zip, atomically.

    The buffer has zarr format 2, which Diffusion Policy reads.
    """
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    root = zarr.open_group(part, mode="w", zarr_format=2)
    data, meta = root.create_group("data"), root.create_group("meta")
    for key, value in {**demonstrations.observations, ACTION: demonstrations.actions}.items():
        rows = 64 if value.dtype == np.uint8 else 4096
        data.create_array(key, data=value, chunks=(min(rows, len(value)), *value.shape[1:]))
    meta.create_array("episode_ends", data=demonstrations.episode_ends)
    if path.suffix == ".zip":
        packed = Path(shutil.make_archive(str(part), "zip", part))
        shutil.rmtree(part)
        part = packed
    elif path.exists():
        shutil.rmtree(path)
    part.replace(path)


def write_lerobot(path: Path, demonstrations: Demonstrations, fps: int, task: str) -> None:
    """Add episodes to a LeRobotDataset in a local folder, or create one.

    A key K becomes "observation.K"; pictures (height, width, 3) uint8 become images, other arrays float32 vectors. An
    instruction is the dataset's `task`.
    """
    try:
        lerobot = import_module("lerobot.datasets.lerobot_dataset")
    except ImportError as error:
        raise InputError(f"{path} needs LeRobot ({error}): {install('lerobot')}") from None
    columns = {
        f"{OBSERVATION}{key.removeprefix(OBSERVATION)}": _column(value)
        for key, value in demonstrations.observations.items()
        if key != TASK
    }
    columns[ACTION] = _column(demonstrations.actions)
    name = f"local/{path.name}"
    if is_lerobot(path):
        open_folder(path)  # checks it
        add_to = getattr(lerobot.LeRobotDataset, "resume", lerobot.LeRobotDataset)  # LeRobot 0.4 has one way to open
        dataset = add_to(name, root=path)
    else:
        features = {key: _feature(value) for key, value in columns.items()}
        dataset = lerobot.LeRobotDataset.create(name, fps, features, root=path, use_videos=False)
    for steps in demonstrations.episodes:
        for i in range(steps.start, steps.stop):
            dataset.add_frame({**{key: value[i] for key, value in columns.items()}, "task": task or "none"})
        dataset.save_episode()
    dataset.finalize()


def _column(value: Array) -> Array:
    """Return an array in the shape and dtype in which LeRobot stores it."""
    return value if value.ndim == 4 and value.dtype == np.uint8 else value.reshape(len(value), -1).astype(np.float32)


def _feature(value: Array) -> dict[str, Any]:
    if value.dtype == np.uint8:
        return {"dtype": "image", "shape": value.shape[1:], "names": ["height", "width", "channels"]}
    return {"dtype": "float32", "shape": value.shape[1:], "names": [str(i) for i in range(value.shape[1])]}


def _read_robomimic(path: Path, choose: Choose) -> Demonstrations:
    h5py = _h5py(path)
    try:
        budget = Budget(path)
        with h5py.File(path, "r") as file:
            data = hdf5_child(file, "data", budget)
            names = sorted(data, key=lambda name: int(name.rpartition("_")[2]))
            demos = [hdf5_child(data, name, budget) for name in names]
            first = hdf5_child(demos[0], "obs", budget)
            chosen = choose({key: hdf5_child(first, key, budget).shape[1:] for key in first})
            parts = {key: [read_hdf5(demo, f"obs/{k}", budget) for demo in demos] for key, k in chosen.items()}
            actions = [read_hdf5(demo, "actions", budget) for demo in demos]
        observations = {key: np.concatenate(values) for key, values in parts.items()}
        return Demonstrations(observations, np.concatenate(actions), np.cumsum([len(part) for part in actions]))
    except FORMAT_ERRORS as error:
        raise InputError(f"{path} is not robomimic's HDF5: {one_line(error)}") from None


def _read_replay_buffer(path: Path, choose: Choose) -> Demonstrations:
    try:
        budget = Budget(path)
        store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
        root: Any = zarr.open_group(store, mode="r")
        data = root["data"]
        chosen = choose({key: array.shape[1:] for key, array in data.members() if key != ACTION})
        observations = {key: read_zarr(data, name, budget) for key, name in chosen.items()}
        actions, ends = read_zarr(data, ACTION, budget), read_zarr(root, "meta/episode_ends", budget)
        written = int(ends[-1]) if len(ends) else 0  # a killed recording may have more rows
        return Demonstrations({key: value[:written] for key, value in observations.items()}, actions[:written], ends)
    except FORMAT_ERRORS as error:
        raise InputError(f"{path} is neither a zarr replay buffer nor a LeRobotDataset: {one_line(error)}") from None


def _read_lerobot(path: Path, choose: Choose) -> Demonstrations:
    features = read_info(path).features
    shapes = {key: feature.shape for key, feature in features.items() if key.startswith(OBSERVATION)}
    chosen = choose(shapes | {TASK: ()})
    if ACTION not in features:
        raise InputError(f"{path} is a LeRobotDataset without {ACTION!r}")
    columns = read_columns(path, [*dict.fromkeys(chosen.values()), ACTION, EPISODE])
    ends = np.flatnonzero(np.diff(columns[EPISODE], append=-1)) + 1
    return Demonstrations({key: columns[name] for key, name in chosen.items()}, columns[ACTION], ends)


def _h5py(path: Path) -> Any:
    try:
        return import_module("h5py")
    except ImportError:
        raise InputError(f"{path} needs h5py: {install('robosuite')}") from None


def _choose(path: Path, keys: Sequence[str] | None, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    unknown = sorted(set(keys or ()) - set(shapes))
    if unknown:
        raise InputError(f"{path} has no {unknown[0]!r}; it has {', '.join(sorted(shapes))}")
    return {key: key for key in ([key for key in shapes if key != TASK] if keys is None else keys)}


def _compression(value: Array) -> str | None:
    return "gzip" if value.dtype == np.uint8 else None


def _short(values: Array) -> str:
    return np.array2string(np.asarray(values), threshold=6)
