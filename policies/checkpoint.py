"""The one reader of pickled checkpoints: torch's weights-only unpickler, which builds tensors and plain containers.

Numbers and arrays of numpy are read by gpc (`numpy_pickles`). Any other class that a file names is refused or, if an
adapter lists it, replaced by an inert stand-in that keeps its arguments. The cost of a file is compared with its
length, before it is read (`pickles`) and tensor by tensor afterwards. There is no fallback: a file that is refused here
is not loaded.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from gpc.errors import InputError, one_line
from gpc.inference.settings import Sampling
from gpc.policies.numpy_pickles import NUMPY
from gpc.policies.pickles import DEPTH, measure
from gpc.policy.spec import LONGEST, ActionSpec, ObservationSpec, Policy, is_whole, policy_repr
from gpc.score.noise import NoiseLevels, Schedule

MALFORMED = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError, EOFError
)  # fmt: skip
"""Exceptions of readers for files of another format."""
SAFE_TORCH = (2, 10)  # weights_only was broken by two advisories before (CVE-2025-32434, and 2.6 to 2.9)
ZIP = b"PK\x03\x04"  # first bytes of an archive
PICKLES = 5  # in a file of the older format, before the storages
TIMES = 8  # bytes of all tensors / bytes of their file; weights may be shared, as in averages
NODES = 2_000_000  # of all containers; a shared one is counted at each use
WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod)\.")  # of DataParallel and of torch.compile
NO_AVERAGE = "{} has no averaged (EMA) weights, by which its training acts; gpc takes the trained ones"
T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointPolicy:
    """Fields that the policies of all adapters share, see `gpc.policy.spec.Policy`."""

    name: str
    fingerprint: str
    actions: ActionSpec
    observations: ObservationSpec
    schedule: Schedule
    n_action_steps: int | None = field(default=None, kw_only=True)
    folder: Path = field(kw_only=True)
    sampling: Sampling | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        return policy_repr(cast(Policy, self))

    def __post_init__(self) -> None:
        _ = self.levels  # raises InputError here, not at the first chunk
        if self.n_action_steps is not None and not is_whole(self.n_action_steps, LONGEST, 1):
            raise InputError(
                f"{self.name} has n_action_steps={one_line(self.n_action_steps, 80)}, no whole number above 0"
            )

    @property
    def levels(self) -> NoiseLevels:
        """Noise levels of the training."""
        return self.schedule.levels


class Inert:
    """A stand-in for a listed class: its arguments and state, without behaviour."""

    args: Any
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        instance = super().__new__(cls)
        instance.args, instance.state = (args, kwargs), {}
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read(path: Path, stand_ins: Collection[str] = ()) -> dict[str, Any]:
    """Read the dictionary of a torch checkpoint (zip, or the older format).

    Numbers of numpy become Python's, arrays stay arrays.

    Args:
        path: file.
        stand_ins: dotted names of the classes that become stand-ins.

    Raises:
        InputError: If the file names another class (the error has its name); is missing, cut short or no dictionary; is
            compressed, since torch never compresses; costs far more than its length; or holds a tensor that is not
            dense.
    """
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_TORCH:
        raise InputError(f"torch {torch.__version__} reads pickles unsafely; install torch>=2.10")
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}")
    allowed: dict[str, Any] = NUMPY | {name: type(name.rpartition(".")[2], (Inert,), {}) for name in stand_ins}
    allowed["collections.defaultdict"] = _empty_dict
    try:
        _check_cost(path, allowed)
        with torch.serialization.safe_globals([(value, name) for name, value in allowed.items()]):
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


def _empty_dict(*_factory: Any) -> dict[Any, Any]:
    """Return a dictionary for a defaultdict: torch puts items into no stand-in."""
    return {}


def _check_cost(path: Path, called: Collection[str]) -> None:
    """Measure the pickles of a file before torch reads them."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            file.seek(0)
            for _ in range(PICKLES):
                measure(file, path.stat().st_size, called)
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
                measure(io.BytesIO(archive.read(name)), path.stat().st_size, called)


def representation(declared: Iterable[bool]) -> bool | None:
    """Return whether actions are moves (delta actions), as all declarations have it.

    None if there is no declaration, or they differ.
    """
    answers = set(declared)
    return answers.pop() if len(answers) == 1 else None


def unwrapped(weights: Mapping[str, T], where: object) -> dict[str, T]:
    """Remove the prefixes of DataParallel and torch.compile from weights' names.

    Raises:
        InputError: If two weights have one name without them.
    """
    plain = {WRAPPERS.sub("", str(name)): value for name, value in weights.items()}
    if len(plain) < len(weights):
        raise InputError(f"{where} holds weights twice, with and without the prefix 'module.' or '_orig_mod.'")
    return plain


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a checkpoint file, weights and normalisers."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _dense(tensor: Tensor) -> bool:
    """Return whether a tensor consists of numbers of the file, each of them once."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized
    return (
        plain
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


class _Walk:
    """Collects the tensors in a file's content; refuses content without an end.

    Containers may be shared, nested or contain themselves. Stand-ins may refer to each other, since later readers do
    not descend into them; each is walked separately here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sizes: dict[int, int] = {}
        self.collected: list[Tensor] = []
        self.waiting: list[Any] = []

    def tensors(self, content: Any) -> list[Tensor]:
        self.waiting.append(content)
        while self.waiting:
            self._size(self.waiting.pop(), 0)
        return self.collected

    def _size(self, node: Any, depth: int) -> int:
        """Return the number of nodes below this one, counted once for every path."""
        key = id(node)
        if key in self.sizes:
            return self.sizes[key]
        parts: list[Any] = []
        match node:
            case Tensor():
                self.collected.append(node)
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
    match = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:class|function) ([\w.]+)", text)
    if match:
        return f"it needs {match[1]}, which is neither a tensor nor a plain container"
    return (
        f"it is damaged or holds more than tensors, numbers and plain containers ({type(error).__name__}: {text[:120]})"
    )
