"""What happened in the episodes of a run: `trajectories.zarr`, many episodes in one file.

Zarr 3 with sharding (zarr.dev): a file (shard) holds up to `EPISODES` episodes of one array, in chunks that are compressed and read
one by one. A shard is replaced whole, so that a kill while it grows loses none of the episodes that it held.
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
from gpc.env import Array
from gpc.errors import GpcError, InputError, RunError, one_line

FOLDER = "trajectories.zarr"
EPISODES = 256  # in one file, at most
CHUNKS = 16  # of one file
FILE_BYTES = 64 * 2**20  # of one file before compression, at most: each batch of episodes writes the last file again
READ_BYTES = 2**30  # of one chunk, at most, in a folder that is read
CODECS = {"bytes", "zstd", "crc32c", "sharding_indexed"}


class Trajectories:
    """The recorded arrays of a run: (episodes, `length`, ...) each, filled up with NaN.

    Raises:
        InputError: the folder is damaged.
        OSError: the disk failed.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._path, self._length = path / FOLDER, length
        with _checked(self._path, InputError, passed=OSError):
            self._group = zarr.open_group(_DurableStore(self._path), mode="a", zarr_format=3)
            self._arrays: dict[str, Any] = {name: self._group[name] for name in _names(self._path)}

    def write(self, start: int, batch: Sequence[Mapping[str, Array]]) -> None:
        """Write the episodes of numbers `start` and following; they are on disk when this returns.

        Raises:
            OSError: the disk failed; what was there before `start` stays.
            RunError: what is there already is damaged.
        """
        with _checked(self._path, RunError, passed=OSError):
            for name in {**self._arrays, **{name: None for episode in batch for name in episode}}:
                self._write(name, start, [episode.get(name) for episode in batch])

    def _write(self, name: str, start: int, values: Sequence[Array | None]) -> None:
        if name not in self._arrays:
            self._arrays[name] = self._create(name, next(value for value in values if value is not None))
        array, stop = self._arrays[name], start + len(values)
        if stop > array.shape[0]:
            array.resize((-(-stop // EPISODES) * EPISODES, *array.shape[1:]))
        block = np.full((len(values), *array.shape[1:]), np.nan, array.dtype)
        for filled, value in zip(block, values, strict=True):
            if value is not None:
                filled[: len(value)] = value
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
    """A folder in which a file is on disk, and its name, when its write returns."""

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
    """Read the recorded arrays of an episode, without the filling.

    Args:
        path: run folder.
        episode: line in episodes.jsonl, from 0.

    Raises:
        InputError: it is missing or damaged.
    """
    with _checked(path / FOLDER, InputError, f"has no episode {episode} that can be read"):
        group = zarr.open_group(path / FOLDER, mode="r", zarr_format=3)
        found = {name: _episode(name, group[name], episode) for name in _names(path / FOLDER)}
    if "action" not in found:
        raise InputError(f"{path} has episodes.jsonl but no actions; copy its trajectories.zarr, too")
    return {name: value[~np.isnan(value.reshape(len(value), -1)).all(1)] for name, value in found.items()}


def _names(path: Path) -> list[str]:
    """The arrays: a kill may leave the folder of one that has no metadata yet."""
    return sorted(file.parent.name for file in path.glob("*/zarr.json"))


def _episode(name: str, array: Any, episode: int) -> Array:
    """Read one entry of an array, if it needs no more memory and no other codecs than gpc's own."""
    inner = array.chunks
    outer = array.shards or inner
    size = prod(inner) * array.dtype.itemsize
    if array.ndim < 2 or size > READ_BYTES or prod(outer) > EPISODES * prod(inner):
        raise ValueError(f"{name} has chunks of {size} bytes in files of {prod(outer) // max(1, prod(inner))} chunks")
    if foreign := sorted(set(_codecs(array.metadata.to_dict()["codecs"])) - CODECS):
        raise ValueError(f"{name} is encoded with {', '.join(foreign)}")
    return np.asarray(array[episode])


def _codecs(nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for node in nodes:
        yield str(node["name"])
        inner = node.get("configuration", {})
        yield from _codecs([*inner.get("codecs", ()), *inner.get("index_codecs", ())])


@contextmanager
def _checked(
    path: Path, kind: type[GpcError], problem: str = "is damaged", passed: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """Turn the errors of zarr over damaged files, which may be any but `passed`, into one line."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise kind(f"{path} {problem}: {one_line(error)}") from None
