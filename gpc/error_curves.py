"""The picture of `gpc.denoising_error`: how large the policies' errors are, how alike, and what would weigh them best."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from gpc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def error_curves(errors: Mapping[str, Any]) -> Figure:
    """A summary's `denoising_error` over sigma: each policy's error, each pair's correlation, the best weights."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the errors' figure needs matplotlib; pip install 'gpc[report]'") from None

    sigmas, names = errors["sigmas"], list(errors["rms"])
    figure = Figure(figsize=(12, 4), layout="constrained", dpi=150)
    size, alike, weights = figure.subplots(1, 3)
    for k, name in enumerate(names):
        size.loglog(sigmas, errors["rms"][name], "o-", label=name)
        weights.semilogx(sigmas, [level[k] for level in errors["weights_per_level"]], "o-", color=f"C{k}", label=name)
        weights.axhline(errors["weights"][k], color=f"C{k}", linestyle=":", linewidth=1)
    for n, (i, j) in enumerate(combinations(range(len(names)), 2), len(names)):
        pair = [level[i][j] for level in errors["correlation"]]
        alike.semilogx(sigmas, pair, "o-", color=f"C{n}", label=f"{names[i]}, {names[j]}")
    size.set(title="one-step denoising error", ylabel="RMS, normalised actions")
    alike.set(title="correlation of the errors", ylim=(min(-0.05, alike.get_ylim()[0]), 1.05))
    weights.set(title="weights with the least error", ylabel="at a level; dotted: over all levels", ylim=(-0.05, 1.05))
    for axes in (size, alike, weights):
        axes.set_xlabel("sigma")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure
