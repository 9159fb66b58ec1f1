"""Messages between a robot and a policy server: msgpack with numpy arrays, in the layout of openpi.

An array is a map of `__ndarray__`, `data`, `dtype`, `shape`, a numpy scalar one of `__npgeneric__`, `data`, `dtype`, both with
byte strings as keys. Nothing is unpickled, and an unknown client's frame needs little more memory than its length: dtypes are
those of `DTYPES`, an array's data has the length of its shape, and containers are counted while they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import msgpack
import numpy as np

from gpc.errors import InputError, one_line

PROTOCOL = 1  # version of the messages below, which openpi does not have; part of a server's metadata
RESET = "gpc.reset"  # a message {RESET: seed}: an episode begins, with the noise of this seed
SEED, CHUNK = "gpc.seed", "gpc.chunk"  # beside an observation: the noise of this chunk
KNOWN, WEIGHT = "gpc.known", "gpc.known_weight"  # beside an observation: actions to continue; see docs/serving.md
ENCODE = "gpc.encode"  # a message {ENCODE: observation of a batch} -> {HANDLE: number}
HANDLE, X, SIGMA, DENOISED = "gpc.denoise", "x", "sigma", "denoised"  # {HANDLE, X, SIGMA} -> {DENOISED: x0}

FRAME = 16 * 2**20  # bytes in a frame
LONGEST = 4096  # items in one list or map
ITEMS = 16384  # items in all lists and maps of a frame, the containers included
DIMENSIONS = 8  # of an array
DTYPES = {
    code: np.dtype(code)
    for kind in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
    for code in ([f"|{kind}"] if kind.endswith("1") else [f"<{kind}", f">{kind}"])
}


def pack(message: Any) -> bytes:
    """Return the frame of a message.

    Args:
        message: maps, lists, text, numbers and arrays.

    Raises:
        InputError: If the message holds something else, or is too long.
    """
    try:
        frame: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"message cannot be sent: {one_line(error, 120)}") from None
    if len(frame) > FRAME:
        raise InputError(f"message has {len(frame)} bytes, a frame holds {FRAME}; send smaller images or fewer rows")
    return frame


def unpack(frame: bytes) -> Any:
    """Return the message of a frame; its arrays are read-only.

    Raises:
        InputError: If the frame is damaged or breaks a limit.
    """
    if len(frame) > FRAME:
        raise InputError(f"frame has {len(frame)} bytes, at most {FRAME} are read")
    reader = _Reader()
    try:
        return msgpack.unpackb(
            frame,
            object_hook=reader.map,
            list_hook=reader.list,
            ext_hook=_refuse,
            max_array_len=LONGEST,
            max_map_len=LONGEST,
            max_ext_len=16,
        )
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise InputError(f"frame is not msgpack with arrays in openpi's layout ({one_line(error, 120)})") from None


def read_array(message: Mapping[Any, Any], key: str, shapes: list[tuple[int, ...]]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a finite array of one of these shapes of a message, as float64.

    Raises:
        InputError: If the message has none.
    """
    value = message.get(key)
    shape = value.shape if isinstance(value, np.ndarray | np.generic) else None
    if shape not in shapes:
        raise InputError(f"{key!r} must be a numpy array of shape {' or '.join(map(str, shapes))}, not {shape}")
    array = np.array(value, np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{key!r} holds NaN or infinity")
    return array


def read_int(message: Mapping[Any, Any], key: str, default: int | None = None) -> int:
    """Return a whole number of a message, from 0 to 2^64 - 1.

    Raises:
        InputError: If the message has none.
    """
    value = message.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**64:
        raise InputError(f"{key!r} must be a whole number, at least 0")
    return int(value)


class _Reader:
    """Counts the items of one frame, and turns maps that describe arrays into arrays."""

    def __init__(self) -> None:
        self.items = 0

    def count(self, container: Any) -> None:
        self.items += 1 + len(container)
        if self.items > ITEMS:
            raise InputError(f"frame has more than {ITEMS} items in its lists and maps; send numbers as arrays")

    def list(self, container: list[Any]) -> list[Any]:
        self.count(container)
        return container

    def map(self, container: dict[Any, Any]) -> Any:
        self.count(container)
        if b"__ndarray__" in container:
            return _array(container)
        return _scalar(container) if b"__npgeneric__" in container else container


def _encode(value: Any) -> Any:
    """Return the map of an array or a numpy scalar."""
    if not isinstance(value, np.ndarray | np.generic):
        raise InputError(
            f"message holds a value of type {type(value).__name__}; send maps, lists, text, numbers and numpy arrays"
        )
    if value.dtype.str not in DTYPES:
        raise InputError(f"message holds an array of {value.dtype}; send bool, int, uint or float")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _array(container: dict[Any, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    dtype, data, shape = _dtype(container), container.get(b"data"), container.get(b"shape")
    if not isinstance(data, bytes):
        raise InputError("array without data in bytes")
    if not isinstance(shape, list) or len(shape) > DIMENSIONS:
        raise InputError(f"array without a shape of at most {DIMENSIONS} dimensions")
    if not all(type(n) is int and 0 <= n <= FRAME for n in shape):
        raise InputError(f"array of shape {shape}: every dimension must be a whole number from 0 to {FRAME}")
    if prod(shape) * dtype.itemsize != len(data):
        raise InputError(f"array of shape {shape} and {dtype} has {len(data)} bytes of data")
    array: np.ndarray[Any, np.dtype[Any]] = np.ndarray(shape, dtype, data)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _scalar(container: dict[Any, Any]) -> Any:
    dtype, data = _dtype(container), container.get(b"data")
    if not isinstance(data, bool | int | float):
        raise InputError("numpy scalar without a number")
    return dtype.type(data)


def _dtype(container: dict[Any, Any]) -> np.dtype[Any]:
    code = container.get(b"dtype")
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(f"array of dtype {str(code)[:40]!r}; send bool, int, uint or float")
    return DTYPES[code]


def _refuse(code: int, data: bytes) -> Any:
    raise InputError(f"frame holds the msgpack extension {code}; send maps, lists, text, numbers and numpy arrays")
