"""Numbers and arrays of numpy in a pickle: their bytes are read, nothing of numpy that a file names is called."""

from __future__ import annotations

import re
from math import prod
from pickle import UnpicklingError
from typing import Any

import numpy as np

NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")  # no objects, no structures, no texts
ORDERS = (("<",), (">",), ("|",), ("=",))
DIMENSIONS, LONGEST = 32, 2**31  # of an array; the product of many long numbers takes quadratic time


class Dtype:
    """A type of numbers as a file describes it; it is checked where it is used."""

    def __init__(self, *arguments: Any) -> None:
        self.code = arguments[0] if arguments else None
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, tuple) else ()

    def open(self) -> np.dtype[Any]:
        """Return the type.

        Raises:
            UnpicklingError: If it is none of booleans, integers and floats.
        """
        order, structure = self.state[1:2], self.state[2:5]
        plain = isinstance(self.code, str) and NUMBERS.fullmatch(self.code) and structure == (None, None, None)
        if not plain or order not in ORDERS:
            raise UnpicklingError(f"numpy data of type {str(self.code)[:40]!r}, which is no number")
        return np.dtype(f"{order[0]}{self.code}")


def scalar(dtype: Any, data: Any) -> bool | int | float:
    """Return the Python number of a numpy scalar.

    Raises:
        UnpicklingError: If it is no number, or has other bytes than its type.
    """
    number: bool | int | float = np.frombuffer(*_check(dtype, data, 1)).item()
    return number


class Array(np.ndarray[Any, Any]):
    """An array, empty until its state is set."""

    def __new__(cls, *_: Any) -> Array:
        """Make an empty array, whatever the arguments are."""
        return super().__new__(cls, (0,))

    def __setstate__(self, state: Any) -> None:
        """Take shape and numbers from (version, shape, dtype, order, bytes).

        Raises:
            UnpicklingError: If it holds no numbers, or other bytes than its shape and type need.
        """
        _, shape, dtype, fortran, data = state
        plain = isinstance(shape, tuple) and len(shape) <= DIMENSIONS
        if not plain or not all(type(n) is int and 0 <= n <= LONGEST for n in shape):
            raise UnpicklingError("an array of numpy without a shape")
        data, kind = _check(dtype, data, prod(shape))
        checked: Any = (1, shape, kind, fortran is True, data)
        super().__setstate__(checked)


def dill_array(_function: Any, _arguments: Any, state: Any, _attributes: Any = None) -> Array:
    """Return an array as dill describes it."""
    array = Array()
    array.__setstate__(state)
    return array


def empty_bytes(*arguments: Any) -> bytes:
    """Return b"", which a pickle of protocol 2 makes by a call without arguments.

    Raises:
        UnpicklingError: If there are arguments; a number would be allocated.
    """
    if arguments:
        raise UnpicklingError("function bytes")
    return b""


def _check(dtype: Any, data: Any, count: int) -> tuple[bytes, np.dtype[Any]]:
    """Return bytes and type of `count` numbers."""
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise UnpicklingError("numpy data without a type or without bytes")
    kind = dtype.open()
    if len(data) != count * kind.itemsize:
        raise UnpicklingError(f"{count} numpy numbers of {kind} in {len(data)} bytes")
    return data, kind


NUMPY: dict[str, Any] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": "numpy.ndarray",  # an argument of _reconstruct, which nothing calls
    "numpy.core.multiarray.scalar": scalar,
    "numpy._core.multiarray.scalar": scalar,
    "numpy.core.multiarray._reconstruct": Array,
    "numpy._core.multiarray._reconstruct": Array,
    "dill._dill._create_array": dill_array,
    "builtins.bytes": empty_bytes,
    "__builtin__.bytes": empty_bytes,
}
"""Names of numpy 1 and 2 (and of dill, which saves Diffusion Policy's files) -> what is called instead."""
