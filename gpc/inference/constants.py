"""Constants of a network as tensors on its device: a CUDA graph cannot copy them from the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Constants(TorchFunctionMode):
    """Makes a tensor from the same numbers once.

    Numbers in an index, or assigned to rows, are meant, too: `x[..., (3, 7)] = 0.0`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or return the tensor that it made of these numbers."""
        if func is torch.tensor:
            return self._tensor(*args, **(kwargs or {}))
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            x, index, *values = args
            values = [v if isinstance(v, Tensor) else self._tensor(v, dtype=x.dtype, device=x.device) for v in values]
            args = x, self._index(index, x.device), *values
        return func(*args, **(kwargs or {}))

    def _tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        key = repr((args, kwargs))
        if key not in self.made:
            self.made[key] = torch.tensor(*args, **kwargs)
        return self.made[key]

    def _index(self, index: Any, device: torch.device) -> Any:
        """Return an index with its lists of numbers as tensors."""
        return tuple(
            self._tensor([*part], device=device)
            if isinstance(part, list | tuple) and part and all(type(number) is int for number in part)
            else part
            for part in (index if isinstance(index, tuple) else (index,))
        )
