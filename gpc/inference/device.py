"""Devices: the networks of policies compute on a card, the sampler's state stays on the host in float64.

Noise, samplers, composers and alignment are the same on every machine. The networks of a policy are copied to its
device, observations are sent there once for a chunk (pictures as uint8), x and the output once for an evaluation.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import environ
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from gpc.errors import InputError, RunError, one_line
from gpc.inference.constants import Constants
from gpc.inference.trace import traced
from gpc.policy.adapt import check_names
from gpc.policy.spec import Dtype, Policy

WARM_UP = 3  # runs before a recording, as torch's documentation has it
RECORDING = Lock()  # a recording begins by waiting for its card, which breaks one that is under way in another thread


@dataclass(frozen=True)
class Device:
    """Where and how networks compute.

    Attributes:
        name: "auto" (a card if there is one), "cpu", "cuda", "cuda:1", "mps", "xpu"; or one for each policy by its name,
            then "auto" for the others.
        dtype: "bfloat16": products of matrices and convolutions in bfloat16 (autocast), their weights too. None: as the
            checkpoint has them, float32 for most.
        tf32: Products of float32 matrices with 10 bits of mantissa, on cards that have it.

    Raises:
        InputError: If the name is no device's, or the dtype is unknown.
    """

    name: str | Mapping[str, str] = "auto"
    dtype: Dtype | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in (None, *get_args(Dtype)):
            raise InputError(
                f"dtype={self.dtype}: choose {', '.join(get_args(Dtype))}, or null for the checkpoint's own"
            )
        for name in self._names:
            parse(name)

    @property
    def _names(self) -> list[str]:
        return [*self.name.values(), "auto"] if isinstance(self.name, Mapping) else [self.name]

    def check_here(self) -> None:
        """Check that the devices are on this machine.

        Raises:
            InputError: If one is not.
        """
        for name in self._names:
            find(name)

    def of(self, policy: str) -> torch.device:
        """Return the device of a policy by its name."""
        return find(self._name_of(policy))

    def _name_of(self, policy: str) -> str:
        return self.name.get(policy, "auto") if isinstance(self.name, Mapping) else self.name

    def check(self, policies: Sequence[Policy]) -> None:
        """Check that the names are those of policies.

        Raises:
            InputError: If there is no policy of a name.
        """
        if isinstance(self.name, Mapping):
            check_names("device", self.name, policies)

    def settings(self, policies: Sequence[str]) -> dict[str, Any]:
        """Return what determines a result, as plain data; cards of one kind are equal.

        The devices may be those of another machine.
        """
        kinds = {name: (parse(self._name_of(name)) or find("auto")).type for name in policies}
        same = len({*kinds.values()}) == 1
        return {"device": next(iter(kinds.values())) if same else kinds, "dtype": self.dtype, "tf32": self.tf32}

    def facts(self, policies: Sequence[str]) -> dict[str, str]:
        """Return cards and the versions of their software, for a run's manifest."""
        cards = dict.fromkeys(self.of(name) for name in policies)
        if not any(card.type == "cuda" for card in cards):
            return {}
        names = dict.fromkeys(torch.cuda.get_device_name(card) for card in cards if card.type == "cuda")
        cudnn = {"cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
        return {"card": ", ".join(names), "cuda": str(torch.version.cuda), **cudnn, **_driver()}


DeviceLike = str | torch.device | Mapping[str, str] | Device
"""A device, its name, or names by policy."""


def _driver() -> dict[str, str]:
    """Return the version of NVIDIA's driver, as Linux has it."""
    try:
        version = re.search(r"\d+(\.\d+)+", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return {}
    return {"driver": version[0]} if version else {}


def as_device(device: DeviceLike) -> Device:
    """Return a device, from its name or from names by policy."""
    if isinstance(device, Device):
        return device
    return Device(str(device) if isinstance(device, torch.device) else device)


def parse(name: str) -> torch.device | None:
    """Return the device of a name, here or on another machine; None for "auto".

    Raises:
        InputError: If it is no device's name.
    """
    try:
        return None if name == "auto" else torch.device(str(name))
    except RuntimeError:
        raise InputError(f"device={name}: choose auto, cpu, cuda, cuda:1, mps or xpu") from None


def find(name: str) -> torch.device:
    """Return a device of this machine.

    Raises:
        InputError: If it is not there.
    """
    here, device = torch.accelerator.current_accelerator(check_available=True), parse(name)
    if device is None:
        return here or torch.device("cpu")
    if device.type == "cpu":
        return torch.device("cpu")
    if here is None or device.type != here.type:
        there = f"cpu and {here.type}" if here else "cpu only"
        raise InputError(f"device={name}: torch {torch.__version__} finds {there} here; choose one of these, or auto")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise InputError(f"device={name}: this machine has {count}, numbered from 0")
    return device


class Memory(NamedTuple):
    """A device of this machine: its name, its card, and bytes if they are known."""

    name: str
    card: str
    free: int | None = None
    total: int | None = None


def devices_here() -> list[Memory]:
    """Return the devices of this machine beside the CPU."""
    here = find("auto")
    if here.type == "cpu":
        return []
    names = [f"{here.type}:{number}" for number in range(torch.accelerator.device_count())]
    if here.type != "cuda":
        return [Memory(name, here.type) for name in names]
    return [Memory(name, torch.cuda.get_device_name(name), *torch.cuda.mem_get_info(name)) for name in names]


def software() -> dict[str, str]:
    """Return the versions of torch, of its CUDA, and of the driver, if there are any."""
    cuda = {"cuda": torch.version.cuda} if torch.version.cuda else {}
    return {"torch": torch.__version__, **cuda, **_driver()}


def prepare(device: Device) -> None:
    """Set what holds for a process: TF32, and kernels that repeat their result."""
    if not any(find(name).type == "cuda" for name in device._names):
        return
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # several streams: cuBLAS repeats its result
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    with warnings.catch_warnings():  # the newer settings cannot be read by what still reads the older ones
        warnings.simplefilter("ignore", UserWarning)
        torch.set_float32_matmul_precision("high" if device.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = device.tf32


@dataclass(frozen=True)
class Card:
    """A device on which networks compute, in a stream of its own.

    Attributes:
        device: The device.
        dtype: Of products of matrices and of convolutions; None: as the weights are.
    """

    device: torch.device
    dtype: Dtype | None = None

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """Stream of a card."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @cached_property
    def aside(self) -> torch.cuda.Stream:
        """Stream of recordings, one for all: torch has 32 in a process."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @contextmanager
    def entered(self, policy: str) -> Iterator[None]:
        """Make device, stream and dtype current in this thread.

        Raises:
            RunError: If the memory of the device is full.
        """
        try:
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                if self.device.type == "cuda":
                    stack.enter_context(torch.cuda.device(self.device))
                    stack.enter_context(torch.cuda.stream(self.stream))
                if self.dtype:
                    dtype = getattr(torch, self.dtype)
                    stack.enter_context(torch.autocast(self.device.type, dtype, cache_enabled=False))
                yield
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"policy {policy!r} does not fit into the memory of {self.device}: choose dtype=bfloat16, another card for it "
                f"('device={{{policy}: cuda:1}}'), or serve it from another machine, remote:ws://HOST:PORT ({one_line(error, 99)})"
            ) from None

    def fetch(self, out: Tensor) -> Callable[[], Tensor]:
        """Begin to copy an output to the host.

        Returns:
            A function that waits for it.
        """
        if self.device.type != "cuda":
            host = out.to("cpu")
            return lambda: host
        host = torch.empty(out.shape, dtype=out.dtype, pin_memory=True)
        host.copy_(out, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self.stream)  # type: ignore[no-untyped-call]

        def wait() -> Tensor:
            event.synchronize()
            return host

        return wait

    @property
    def is_host(self) -> bool:
        """Whether it is the CPU, with weights as they are."""
        return self.device.type == "cpu" and self.dtype is None

    @property
    def records(self) -> bool:
        """Whether batches of all sizes are recorded."""
        return self.device.type == "cuda"

    def record(self, function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Tensor]:
        """Record a function of inputs: on a card as a CUDA graph, in the stream aside."""
        if self.device.type != "cuda":
            return traced(function, *inputs)
        graph, constants = torch.cuda.CUDAGraph(), Constants()
        # around the recording, too: if that fails, torch leaves its stream current
        with RECORDING, torch.cuda.stream(self.aside), constants:
            self.aside.wait_stream(self.stream)
            for _ in range(WARM_UP):
                function(*inputs)
            with torch.cuda.graph(graph, stream=self.aside, capture_error_mode="thread_local"):
                out = function(*inputs)
            self.stream.wait_stream(self.aside)
        memory = out, constants.made  # the graph reads the constants at their place in memory

        def run() -> Tensor:
            graph.replay()
            return memory[0]

        return run
