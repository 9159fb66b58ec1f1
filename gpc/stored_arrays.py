"""Arrays of HDF5 and zarr files from outside, checked against the length of their file before they are read.

Such a file may declare an array of any shape, since missing chunks are filled in. It may also refer to other files, or
have its chunks unpickled; both are refused.
"""

from __future__ import annotations

from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import zarr

from gpc.errors import InputError
from gpc.types import Array

TIMES, SPARE = 100, 64 * 2**20  # limit of the bytes of all arrays: TIMES * bytes of their file + SPARE
CHUNKS, CHUNKS_SPARE = 100, 10_000  # limit of the chunks of an array: CHUNKS * parts of its store + CHUNKS_SPARE
NUMBERS = "biuf"  # kinds of dtype: bool, int, unsigned, float


class Budget:
    """The bytes that arrays of one file or folder may take together."""

    def __init__(self, path: Path, spare: int = SPARE) -> None:
        self.path = path
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        stored = sum(file.stat().st_size for file in files)
        self.parts, self.left = len(files), TIMES * stored + spare
        if path.suffix == ".zip":
            with ZipFile(path) as archive:
                self.parts = len(archive.infolist())
                self.take("its parts", sum(part.file_size for part in archive.infolist()))

    def take(self, name: str, count: int) -> None:
        """Subtract bytes that are about to be read.

        Raises:
            InputError: If the file is far too small for them.
        """
        self.left -= count
        if self.left < 0:
            raise InputError(f"{self.path}: {name} would take {count} bytes, of which the file holds a small part only")


def _check_array(
    name: str, array: Any, budget: Budget, chunk: tuple[int, ...], shape: tuple[int, ...] | None = None
) -> None:
    """Check the kind of an array, the size of `shape` (None: all) and of one chunk."""
    kind, shape = np.dtype(array.dtype), array.shape if shape is None else shape
    if kind.kind not in NUMBERS or kind.subdtype or not array.shape:
        raise InputError(f"{budget.path}: {name} holds {kind} of shape {array.shape}; gpc reads arrays of numbers")
    budget.take(f"a chunk of {name}", prod(chunk) * kind.itemsize)
    budget.take(name, prod(shape) * kind.itemsize)
    chunks = prod(-(-length // part) for length, part in zip(shape, chunk, strict=True))
    if chunks > CHUNKS * budget.parts + CHUNKS_SPARE and not budget.path.is_file():
        raise InputError(f"{budget.path}: {name} has {chunks} chunks, its folder {budget.parts} files")


def hdf5_child(group: Any, name: str, budget: Budget) -> Any:
    """Open a group or dataset of HDF5.

    Raises:
        ValueError: If it is missing, or a link.
    """
    h5py = import_module("h5py")
    node = group
    for part in name.split("/"):
        if not isinstance(node, h5py.Group) or not isinstance(node.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name} in {group.name} is missing, or a link; gpc follows none")
        node = node[part]
    return node


def read_hdf5(group: Any, name: str, budget: Budget) -> Array:
    """Read an array of HDF5.

    Raises:
        InputError: If it is no array of numbers in this file, or far larger than its file.
    """
    dataset = hdf5_child(group, name, budget)
    if not isinstance(dataset, import_module("h5py").Dataset) or dataset.is_virtual or dataset.external:
        raise InputError(f"{budget.path}: {name} in {group.name} is no dataset in this file")
    _check_array(name, dataset, budget, dataset.chunks or (1,) * len(dataset.shape or ()))
    return np.asarray(dataset[:])


def read_zarr(group: Any, name: str, budget: Budget) -> Array:
    """Read an array of zarr, opened by `zarr_array`."""
    return np.asarray(zarr_array(group, name, budget)[:])


def zarr_array(group: Any, name: str, budget: Budget, entries: int | None = None) -> Any:
    """Open an array of zarr, of which `entries` entries are read (None: all).

    Raises:
        InputError: If it is no array of numbers, its chunks would be unpickled, or it is far larger than its store.
    """
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise InputError(f"{budget.path}: {name} is no array")
    names = codecs(array)
    if any("pickle" in codec.lower() for codec in names):
        raise InputError(f"{budget.path}: {name} is stored by {', '.join(names)}; gpc unpickles nothing")
    shape = array.shape if entries is None else (entries, *array.shape[1:])
    _check_array(name, array, budget, array.shards or array.chunks, shape)
    return array


def codecs(array: Any) -> list[str]:
    """Return the types of all codecs of an array, those of its shards included."""
    stages = [*array.filters, *array.compressors, *([array.serializer] if array.serializer else [])]
    for codec in stages:
        stages += [*getattr(codec, "codecs", ()), *getattr(codec, "index_codecs", ())]
    return [type(codec).__name__ for codec in stages]
