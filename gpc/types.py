"""Types that all folders share."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]


Frame = dict[str, Array]
"""One observation at one time: key -> array of the key's shape."""
