"""The one reader of pickled checkpoints: torch's weights-only unpickler, which builds tensors and plain containers.

Any other class that a file names is refused, or, where an adapter lists it, replaced by an inert stand-in that keeps what it
was given. There is no fallback: a file that this refuses is not loaded.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gpc.errors import InputError
from gpc.inert import notice

MALFORMED = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError)
"""What reading a file that is not of its format may raise."""
SAFE_TORCH = (2, 10)  # weights_only was broken by two advisories before (CVE-2025-32434, and 2.6 to 2.9)


class Inert:
    """What stands for a listed class: its arguments and state, and nothing that acts."""

    args: Any
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        made = super().__new__(cls)
        made.args, made.state = (args, kwargs), {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read(path: Path, stand_ins: Collection[str] = ()) -> dict[str, Any]:
    """The dictionary that a torch checkpoint (zip, or the older format) holds; `stand_ins` are dotted class names.

    Raises InputError, naming the class, where the file asks for anything but tensors, containers and `stand_ins`; where it
    is missing, cut short, compressed (torch never compresses: a zip bomb), or no dictionary; where a tensor is not dense.
    """
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise InputError(f"torch {torch.__version__} reads pickles unsafely; install torch>=2.10")
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}")
    allowed: list[Any] = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in stand_ins]
    try:
        _refuse_compressed(path)
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (*MALFORMED, UnpicklingError, EOFError, OSError, struct.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not loaded: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not the dictionary of a checkpoint")
    if not all(map(_dense, _tensors(content))):
        raise InputError(f"{path} holds a sparse, nested or quantised tensor; gpc reads dense ones only")
    return content


def _refuse_compressed(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(f"{path} holds compressed parts ({packed[0]}); torch writes none, this may be a zip bomb")


def representation(path: Path, declared: Iterable[bool], where: str) -> bool | None:
    """Whether actions are moves (delta) or targets, by what a checkpoint declares; said where that is nothing, or both."""
    found = set(declared)
    if len(found) == 1:
        return found.pop()
    notice(
        f"{path} does not say whether its actions are moves (delta) or absolute targets ({where}); gpc cannot refuse a "
        "composition of both"
    )
    return None


def fingerprint(path: Path) -> str:
    """SHA-256 of a checkpoint file, weights and normalisers."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _dense(tensor: Tensor) -> bool:
    """Torch builds the other kinds without comparing their sizes and indices with the memory that the file fills."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def _tensors(content: Any) -> Iterator[Tensor]:
    seen: set[int] = set()
    left = [content]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        match node:
            case Tensor():
                yield node
            case dict():
                left += node.values()
            case list() | tuple() | set():
                left += node
            case Inert():
                left += [node.args, node.state]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function) ([\w.]+)", text)
    if named:
        return f"it asks for {named[1]}, which is neither a tensor nor a plain container"
    return f"it is damaged or holds more than tensors and plain containers ({type(error).__name__}: {text[:120]})"
