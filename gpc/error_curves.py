"""The picture of `gpc.denoising_error`: how large the policies' errors are, and how alike."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from gpc.errors import InputError


def error_curves(errors: Mapping[str, Any], path: Path) -> None:
    """Draw a summary's `denoising_error` as a PNG: each policy's error, each pair's correlation and the best weights over sigma."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the errors' figure needs matplotlib; pip install 'gpc[report]'") from None

    sigmas, names = errors["sigmas"], list(errors["rms"])
    figure = Figure(figsize=(12, 4), layout="constrained", dpi=150)
    size, alike, weights = figure.subplots(1, 3)
    for name in names:
        size.loglog(sigmas, errors["rms"][name], "o-", label=name)
    size.set(title="one-step denoising error", ylabel="RMS, normalised actions")
    for i, j in combinations(range(len(names)), 2):
        values = [level[i][j] for level in errors["correlation"]]
        alike.semilogx(sigmas, values, "o-", color=f"C{i + j + 2}", label=f"{names[i]}, {names[j]}")
    alike.set(title="correlation of the errors", ylim=(min(-0.05, *alike.get_ylim()), 1.05))
    for k, name in enumerate(names):
        weights.semilogx(sigmas, [level[k] for level in errors["weights_per_level"]], "o-", color=f"C{k}", label=name)
        weights.axhline(errors["weights"][k], color=f"C{k}", linestyle=":", linewidth=1)
    weights.set(title="weights with the least error (dotted: over all levels)", ylim=(-0.05, 1.05))
    for axes in (size, alike, weights):
        axes.set_xlabel("sigma")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path)
