"""Build a network on torch's meta device, where tensors have a shape and no memory, before it is allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeVar
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gpc.errors import InputError, one_line

T = TypeVar("T", bound=nn.Module)
CALLS, CALLS_PER_TENSOR = 2_000, 100  # of torch, while a network is built
TABLES = frozenset({torch.arange, torch.linspace})
"""Computed on the CPU if small: X-VLA reads their numbers, and torch's meta versions import its compiler (3 s)."""
LONGEST = 10_000
SPARE = 64 * 2**20  # bytes that a network may compute itself
TIMES = 4  # a file in half precision becomes a network in single precision
NAMED = 3  # weights that an error names


class CallLimit(TorchFunctionMode):
    """Raises after more calls of torch than a network of a file can take."""

    def __init__(self, calls: int, where: str) -> None:
        super().__init__()
        self.calls, self.where = calls, where

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count the call and make it."""
        self.calls -= 1
        if self.calls < 0:
            raise InputError(f"{self.where} describes a network of many more layers than its weights have")
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":  # there is no memory to fill
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in TABLES and _is_small(func, args, kwargs):
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _is_small(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a table has few numbers, by its arguments."""
    numbers = [*args, *(kwargs[key] for key in ("start", "end", "step", "steps") if key in kwargs)]
    counted = numbers[2:3] if func is torch.linspace else numbers
    return bool(counted) and all(isinstance(n, int) and abs(n) <= LONGEST for n in counted)


def dry_run(
    build: Callable[[], T],
    weights: Mapping[str, Tensor],
    size: int,
    where: str,
    renamed: Callable[[T, Any], Mapping[str, Tensor]] = lambda network, weights: weights,
) -> T:
    """Build a network without memory and compare it with its weights.

    Args:
        build: builds the network; torch's default device is "meta" during the call.
        weights: the weights.
        size: bytes of their file.
        where: name of the configuration in errors.
        renamed: returns the weights under the network's names.

    Returns:
        The network on the meta device.

    Raises:
        InputError: If the network has far more layers or bytes than the file; or weights are missing, unexpected or of
            another shape, of which it names a few.
    """
    with catch_warnings(), torch.device("meta"), CallLimit(CALLS + CALLS_PER_TENSOR * len(weights), where):
        simplefilter("ignore")  # a network that loads its weights itself loads none here
        network = build()
    needed = _bytes(chain(network.parameters(), network.buffers()))
    if needed > TIMES * size + SPARE:
        raise InputError(f"{where} describes a network of {needed} bytes, the file of its weights has {size}")
    _check_fit(network.state_dict(keep_vars=True), renamed(network, weights), where)
    return network


def _check_fit(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    common = [name for name in tensors if name in weights]
    tied = {id(tensors[name]) for name in common}  # a weight with several names may be stored once
    shapes = {name: (tuple(weights[name].shape), tuple(tensors[name].shape)) for name in common}
    faults = {
        "missing": [name for name in tensors if name not in weights and id(tensors[name]) not in tied],
        "unexpected": [name for name in weights if name not in tensors],
        "of another shape": [f"{name}: {a} instead of {b}" for name, (a, b) in shapes.items() if a != b],
    }
    parts = [f"{len(names)} {fault} ({_few(names)})" for fault, names in faults.items() if names]
    if parts:
        raise InputError(f"{where} describes a network that its weights do not fit: {', '.join(parts)}")


def _few(names: list[str]) -> str:
    return one_line(", ".join(names[:NAMED] + ["..."] * (len(names) > NAMED)))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in tensors}.values())
