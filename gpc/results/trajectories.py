"""The recorded arrays of the episodes of a run: `trajectories.zarr`, many episodes in one file.

Zarr 3 with sharding (zarr.dev): a file (shard) holds up to `EPISODES` episodes of one array, in chunks that are compressed and
read one by one. A shard is replaced atomically, so that a kill while it grows loses none of its episodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from gpc.disk import replace_file, sync_folder
from gpc.errors import GpcError, InputError, RunError, one_line, reading
from gpc.stored_arrays import Budget, codecs, zarr_array
from gpc.types import Array

FOLDER = "trajectories.zarr"
EPISODES = 256  # in one file, at most
CHUNKS = 16  # of one file
FILE_BYTES = 64 * 2**20  # of one file before compression, at most: each batch of episodes writes the last file again
READ_BYTES = 2**30  # of one episode, in a folder that is read: what fills it up is stored in next to nothing
CODECS = {"BytesCodec", "ZstdCodec", "Crc32cCodec", "ShardingCodec"}


class Trajectories:
    """The recorded arrays of a run, (episodes, length, ...), padded with NaN.

    Args:
        path: Run folder.
        length: Largest number of steps of an episode.

    Raises:
        InputError: If the folder is damaged, has episodes of another length, or contains a link.
        OSError: If the disk failed.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._path, self._length = path / FOLDER, length
        for link in (file for file in (self._path, *self._path.rglob("*")) if file.is_symlink()):
            raise InputError(f"{link} is a link, through which gpc does not write; copy what it leads to")
        with _checked(self._path, InputError):
            self._group = zarr.open_group(_DurableStore(self._path), mode="a", zarr_format=3)
            self._arrays: dict[str, Any] = _arrays(self._path, self._group)
        for name, array in self._arrays.items():
            if array.shape[1] != length:
                raise InputError(
                    f"{self._path}: {name} has episodes of at most {array.shape[1]} steps, not {length}; use another run_dir"
                )

    def write(self, start: int, batch: Sequence[Mapping[str, Array]]) -> None:
        """Write consecutive episodes; they are on disk when this returns.

        Args:
            start: Number of the first episode.
            batch: Arrays (steps, ...) of each episode, by name.

        Raises:
            OSError: If the disk failed; the episodes before `start` stay.
            RunError: If the arrays on disk are damaged.
        """
        with _checked(self._path, RunError):
            for name in {**self._arrays, **{name: None for episode in batch for name in episode}}:
                self._write(name, start, [episode.get(name) for episode in batch])

    def _write(self, name: str, start: int, values: Sequence[Array | None]) -> None:
        if name not in self._arrays:
            self._arrays[name] = self._create(name, next(value for value in values if value is not None))
        array, stop = self._arrays[name], start + len(values)
        present = [value for value in values if value is not None]
        if any(value.shape[1:] != array.shape[2:] for value in present):
            raise ValueError(f"{name} has entries of shape {array.shape[2:]}, not {present[0].shape[1:]}")
        if stop > array.shape[0]:
            array.resize((-(-stop // EPISODES) * EPISODES, *array.shape[1:]))
        if not present:
            array[start:stop] = np.nan
            return
        block = np.full((len(values), *array.shape[1:]), np.nan, array.dtype)
        for i, value in enumerate(values):
            if value is not None:
                block[i, : len(value)] = value
        array[start:stop] = block

    def _create(self, name: str, value: Array) -> Any:
        shape = (self._length, *value.shape[1:])
        dtype = value.dtype if value.dtype.kind == "f" else np.dtype(np.float64)  # whole numbers have no NaN
        per_file = EPISODES
        while per_file > 1 and per_file * prod(shape) * dtype.itemsize > FILE_BYTES:
            per_file //= 2
        return self._group.create_array(
            name,
            shape=(0, *shape),
            chunks=(max(1, per_file // CHUNKS), *shape),
            shards=(per_file, *shape),
            dtype=dtype,
            compressors=ZstdCodec(checksum=True),
            fill_value=np.nan,
            chunk_key_encoding={"name": "v2", "separator": "."},
        )


class _DurableStore(LocalStore):
    """A folder in which a file and its name are on disk when the write returns."""

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self._replace, self.root / key, value)

    def _replace(self, path: Path, value: Buffer) -> None:
        new = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, memoryview(value.as_buffer_like()))
        if new:
            for folder in path.parent.relative_to(self.root).parents:
                sync_folder(self.root / folder)


def read_trajectory(path: Path, episode: int) -> dict[str, Array]:
    """Read the recorded arrays of an episode, without the padding.

    Args:
        path: Run folder.
        episode: Line in episodes.jsonl, from 0.

    Raises:
        InputError: If it is missing or damaged.
    """
    with reading(f"episode {episode} of {path / FOLDER}"):
        group = zarr.open_group(path / FOLDER, mode="r", zarr_format=3)
        arrays = _arrays(path / FOLDER, group)
        trajectory = {name: _without_padding(np.asarray(array[episode])) for name, array in arrays.items()}
    if not len(trajectory.get("action", ())):
        raise InputError(
            f"{path} has episodes.jsonl but no actions of episode {episode}; copy its trajectories.zarr, too"
        )
    return trajectory


def mean_rewards(path: Path, groups: Mapping[str, Sequence[int]]) -> dict[str, tuple[Array, Array]]:
    """Compute the mean reward at each step, over the episodes that still run.

    Args:
        path: Run folder.
        groups: Lines in episodes.jsonl, from 0, by name of the group.

    Returns:
        Means (steps,) and numbers of episodes (steps,) by group, up to the longest episode; nothing if no rewards are
        recorded.

    Raises:
        InputError: If the rewards are damaged.
    """
    if not (path / FOLDER / "reward").is_dir():
        return {}
    with reading(f"the rewards of {path / FOLDER}"):
        array = _arrays(path / FOLDER, zarr.open_group(path / FOLDER, mode="r", zarr_format=3))["reward"]
        Budget(path / FOLDER, READ_BYTES).take("reward", prod(array.shape) * array.dtype.itemsize)
        rewards = np.asarray(array[:], np.float64)
        result = {}
        for name, episodes in groups.items():
            block = rewards[[k for k in episodes if k < len(rewards)]]
            count = (~np.isnan(block)).sum(0)
            count = count[count > 0]
            result[name] = np.nansum(block, 0)[: len(count)] / count, count
    return {name: means for name, means in result.items() if len(means[0])}


def _without_padding(value: Array) -> Array:
    return value[~np.isnan(value).all(axis=tuple(range(1, value.ndim)))]


def _arrays(path: Path, group: Any) -> dict[str, Any]:
    """Open the arrays if their size and codecs are those that gpc writes.

    After a kill the folder of an array may have no metadata yet.
    """
    budget, arrays = Budget(path, READ_BYTES), {}
    for name in sorted(file.parent.name for file in path.glob("*/zarr.json")):
        array = arrays[name] = zarr_array(group, name, budget, entries=1)
        if foreign := sorted({*codecs(array)} - CODECS):
            raise InputError(f"{path}: {name} is encoded with {', '.join(foreign)}")
        if array.ndim < 2 or prod(array.shards or ()) > EPISODES * prod(array.chunks):
            raise InputError(
                f"{path}: {name} has shape {array.shape} in chunks of {array.chunks}; gpc writes none such"
            )
    return arrays


@contextmanager
def _checked(path: Path, kind: type[GpcError]) -> Iterator[None]:
    """Turn errors of zarr over damaged files, but not of the disk, into one line."""
    try:
        yield
    except (OSError, GpcError):
        raise
    except Exception as error:
        raise kind(f"{path} is damaged: {one_line(error)}") from None
