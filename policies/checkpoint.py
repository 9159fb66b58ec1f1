"""The one reader of pickled checkpoints: torch's weights-only unpickler, which builds tensors and plain containers.

Any other class that a file names is refused, or, if an adapter lists it, replaced by an inert stand-in that keeps its arguments.
What a file costs is compared with its length: before it is read (`pickles`), and tensor by tensor afterwards. There is no
fallback: a file that this refuses is not loaded.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from gpc.errors import InputError, one_line
from gpc.inert import notice
from gpc.policies.pickles import DEPTH, measure

MALFORMED = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError, EOFError
)  # fmt: skip
"""What reading a file that is not of its format may raise."""
SAFE_TORCH = (2, 10)  # weights_only was broken by two advisories before (CVE-2025-32434, and 2.6 to 2.9)
ZIP = b"PK\x03\x04"  # how torch recognises an archive
PICKLES = 5  # in a file of the older format, the storages follow
TIMES = 8  # the bytes of all tensors over those of their file; weights may be shared, as in averages
NODES = 2_000_000  # of all containers, a shared one as often as it is used


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

    Raises InputError, naming the class, if the file asks for anything but tensors, containers and `stand_ins`; if it is
    missing, cut short, compressed (torch never compresses: a zip bomb), no dictionary, or costs far more than its length; if
    a tensor is not dense.
    """
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise InputError(f"torch {torch.__version__} reads pickles unsafely; install torch>=2.10")
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}")
    allowed: list[Any] = [(type(name.rpartition(".")[2], (Inert,), {}), name) for name in stand_ins]
    try:
        _check_cost(path, stand_ins)
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (*MALFORMED, UnpicklingError, OSError, struct.error, zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(f"{path} is not loaded: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not the dictionary of a checkpoint")
    tensors = _Walk(path).tensors(content)
    if not all(map(_dense, tensors)):
        raise InputError(f"{path} holds a tensor that is sparse, nested, quantised or larger than its memory")
    size = path.stat().st_size
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > TIMES * size:
        raise InputError(f"{path} has {size} bytes, its tensors would have more than {TIMES} times as many")
    return content


def _check_cost(path: Path, stand_ins: Collection[str]) -> None:
    """Measure the pickles of a file before torch reads them."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            file.seek(0)
            for _ in range(PICKLES):
                measure(file, path.stat().st_size, stand_ins)
            return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise InputError(f"{path} holds compressed parts ({packed[0]}); torch writes none, this may be a zip bomb")
        names = {part.filename for part in parts}
        if len(names) < len(parts) or archive.comment or sum(part.file_size for part in parts) > path.stat().st_size:
            raise InputError(
                f"{path} holds parts that overlap or have one name; torch writes none, this may be a zip bomb"
            )
        for name in names:
            if name.endswith(".pkl"):
                measure(io.BytesIO(archive.read(name)), path.stat().st_size, stand_ins)


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
    """Whether a tensor is one of numbers that the file holds, none of them twice."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return (
        plain
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


class _Walk:
    """Collects the tensors in a file's content, and refuses one that is endless to walk: shared, nested or in a circle.

    Stand-ins are no part of what is walked later, and may refer to each other; each is a beginning of its own here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sizes: dict[int, int] = {}
        self.found: list[Tensor] = []
        self.waiting: list[Any] = []

    def tensors(self, content: Any) -> list[Tensor]:
        self.waiting.append(content)
        while self.waiting:
            self._size(self.waiting.pop(), 0)
        return self.found

    def _size(self, node: Any, depth: int) -> int:
        """Nodes below this one, counted once for every way to them."""
        key = id(node)
        if key in self.sizes:
            return self.sizes[key]
        parts: list[Any] = []
        match node:
            case Tensor():
                self.found.append(node)
            case dict():
                parts = [*node.keys(), *node.values()]
            case list() | tuple() | set():
                parts = list(node)
            case Inert():
                self.waiting += [node.args, node.state]
            case _:
                return 1
        self.sizes[key] = NODES + 1  # of a container that contains itself
        size = 1 + sum(self._size(part, depth + 1) for part in parts) if depth < DEPTH else NODES + 1
        if size > NODES:
            raise InputError(f"{self.path} holds containers that are shared or nested without end")
        self.sizes[key] = size
        return size


def _reason(error: Exception) -> str:
    text = one_line(error)
    named = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function) ([\w.]+)", text)
    if named:
        return f"it asks for {named[1]}, which is neither a tensor nor a plain container"
    return f"it is damaged or holds more than tensors and plain containers ({type(error).__name__}: {text[:120]})"
