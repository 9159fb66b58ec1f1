"""Types that all folders share."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


Frame = dict[str, Array]
"""One observation at one time: key -> array of the key's shape."""

DEVICE_KEYS = ("device", "dtype", "tf32")
"""Settings of `gpc.inference.device.Device`, as configurations and run folders have them."""
