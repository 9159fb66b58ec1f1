"""One key of an observation as policies read it: an image, an instruction or numbers. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gpc.errors import InputError, one_line
from gpc.types import Array

NAME = 200  # characters of a key
TASK, TASK_BYTES = "task", 1024
"""Key of an instruction in words, and its longest: UTF-8 in uint8, padded with zeros."""


def write_text(text: str, size: int = TASK_BYTES) -> Array:
    """Encode an instruction as an observation, (size,) uint8.

    Raises:
        InputError: If it is longer than `size` bytes of UTF-8, or holds a character that has no place in a text.
    """
    try:
        content = text.encode()
    except UnicodeEncodeError:
        raise InputError(f"the instruction {one_line(repr(text), 60)} is no valid Unicode text") from None
    if len(content) > size:
        raise InputError(
            f"the instruction has {len(content)} bytes of UTF-8, the limit is {size}; shorten it: {one_line(text, 60)}"
        )
    if b"\0" in content:
        raise InputError(
            f"the instruction {one_line(repr(text), 60)} holds the character 0, which ends a text; remove it"
        )
    return np.frombuffer(content.ljust(size, b"\0"), np.uint8).copy()


def read_text(task: Array) -> str:
    """Decode the instruction of an observation (size,).

    Raises:
        InputError: If it ends inside a character.
    """
    content = task.tobytes().partition(b"\0")[0]
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputError(
            f"the instruction {one_line(repr(content[-20:]))} was cut inside a character; shorten it"
        ) from None


def conform(key: str, value: Any, shape: tuple[int, ...], image: bool = False) -> Array:
    """Convert one key of an observation to what a policy reads.

    Args:
        key: name of the observation.
        value: array (..., *shape), with or without a batch and a history; for `TASK` also text.
        shape: shape at one time, as the policy declares it.
        image: whether the policy declares an image, (height, width, channels).

    Returns:
        Array (..., *shape). An image is uint8: integers from 0 to 255 keep their value, floats from 0 to 1 are scaled to 255 and
        rounded, and (channels, height, width) is transposed if only that fits. An instruction is uint8 (`write_text`).
        Anything else is float32.

    Raises:
        InputError: If the value is no number, has another shape, or is beyond the range of an image.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.empty(0, object)
    if key == TASK:
        return _instruction(array, shape[-1])
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"observation {key!r} is {type(value).__name__} without numbers; send an array of shape {shape}"
        )
    if image and _ends_with(array, shape[-1:] + shape[:-1]) and not _ends_with(array, shape):
        array = np.moveaxis(array, -3, -1)
    if not _ends_with(array, shape):
        raise InputError(f"observation {key!r} has shape {array.shape}, the policy reads {shape}")
    if image:
        return _image(key, array)
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def flatten(node: Mapping[Any, Any], path: str | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of nested maps, with names joined by dots.

    Raises:
        InputError: If a name is longer than `NAME`, as no policy's is.
    """
    for key, value in node.items():
        name = key if path is None else f"{path}.{key}"  # longer at each depth, even of empty keys
        if isinstance(name, str) and len(name) > NAME:
            raise InputError(f"observation {one_line(name, 40)}... has a name of more than {NAME} characters")
        yield from flatten(value, str(name)) if isinstance(value, Mapping) else [(name, value)]


def fits(offered: tuple[int, ...], shape: tuple[int, ...], image: bool) -> bool:
    """Return whether a value of the shape `offered` can be read in this shape."""
    return offered == shape or (image and offered == shape[-1:] + shape[:-1])


def _ends_with(array: Array, shape: tuple[int, ...]) -> bool:
    return array.ndim >= len(shape) and array.shape[array.ndim - len(shape) :] == shape


def _image(key: str, array: Array) -> Array:
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8, copy=False)
    floats = array.dtype.kind == "f"
    levels = np.rint(255 * array) if floats else array
    if array.dtype.kind == "b" or not (levels >= 0).all() or not (levels <= 255).all():
        kind = "floats" if floats else array.dtype.name
        raise InputError(
            f"image {key!r} holds {kind} from {array.min():g} to {array.max():g}; send integers from 0 to 255 (uint8), or "
            "floats from 0 to 1"
        )
    return levels.astype(np.uint8)


def _instruction(array: Array, size: int) -> Array:
    """Return texts or bytes (..., any size) as bytes (..., size)."""
    if array.dtype.kind == "U":
        rows, texts = array.shape, [str(text) for text in array.ravel()]
    elif array.dtype == np.uint8 and array.ndim:
        if array.shape[-1] == size:
            return array
        rows, texts = array.shape[:-1], [read_text(row) for row in array.reshape(-1, array.shape[-1])]
    else:
        raise InputError(f"observation {TASK!r} is an instruction; send it as text, not as {array.dtype}")
    return np.array([write_text(text, size) for text in texts], np.uint8).reshape(*rows, size)
