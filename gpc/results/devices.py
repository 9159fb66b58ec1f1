"""Where the networks of a run computed, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from gpc.policy.spec import Dtype

Kind = Annotated[str, Meta(max_length=20)]
"""A kind of device, without the number of one."""


class DeviceSettings(Struct, kw_only=True):
    """Where networks compute, in a manifest: `Device.settings`."""

    device: Kind | dict[str, Kind] = "cpu"
    dtype: Dtype | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        # no `pattern`: in a union with a dict msgspec 0.22 frees it as a type (`TypeNode_get_traverse_ranges` does not
        # count it), and the process ends in a segmentation fault
        for name in [self.device] if isinstance(self.device, str) else self.device.values():
            if not (name.isascii() and name.isalpha() and name.islower()):
                raise ValueError(f"device {name!r} is no kind of device, as cpu or cuda")


def device_text(settings: Mapping[str, Any]) -> str:
    """Return where and how networks compute.

    Args:
        settings: Of a run, or of a side of a comparison, with the keys `gpc.types.DEVICE_KEYS`.
    """
    device = settings["device"]
    names = [f"{policy}: {name}" for policy, name in device.items()] if isinstance(device, Mapping) else [device]
    return ", ".join([*names, *filter(None, [settings["dtype"]]), *(["tf32"] if settings["tf32"] else [])])


def device_of(manifest: Mapping[str, Any]) -> str:
    """Return where a run computed, with its card; empty for the CPU.

    Args:
        manifest: In today's words (`gpc.results.upgrade.upgraded`).
    """
    config = manifest["config"]
    texts = dict.fromkeys(map(device_text, config.get("sides") or [config]))
    card = manifest["versions"].get("card")
    return "" if list(texts) == ["cpu"] else ", ".join([*texts, *filter(None, [card])])
