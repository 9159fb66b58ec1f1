"""The figures of a run: success over weights, denoising errors, chunks. One function draws one figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from itertools import combinations
from typing import TYPE_CHECKING, Any

from gpc import inert
from gpc.errors import InputError
from gpc.installation import install
from gpc.results.summary import mixture, reported
from gpc.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TICKS = 40
MOST_CURVES = 3
NOTEBOOK_DPI = 80


@contextmanager
def _own_style() -> Iterator[None]:
    """Draw in matplotlib's default style: the current folder may hold a matplotlibrc."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(f"the figures of a report need matplotlib: {install('report')}") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@_own_style()
def png(figure: Figure, metadata: Mapping[str, str] | None = None, dpi: float | None = None) -> bytes:
    """Return a figure as a PNG file; its texts are inert from then on.

    Args:
        figure: What is drawn.
        metadata: Texts to store in the file, by name.
        dpi: Pixels an inch; by default the figure's.
    """
    inert.figure(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata=dict(metadata or {}), dpi=dpi or figure.dpi)
    return buffer.getvalue()


@_own_style()
def weight_plot(summary: Mapping[str, Any]) -> Figure:
    """Draw success over the weights; winner and parents on report seeds are marks.

    Two policies give a curve over the weight of the first, three a triangle, more a point for each candidate. The success of
    the best candidate on search seeds is too high on average, hence the marks. The area of a point grows with its episodes.
    """
    return _triangle(summary) if _n_weights(summary) == 3 else _curve(summary)


def _curve(summary: Mapping[str, Any]) -> Figure:
    two = _n_weights(summary) == 2
    candidates = sorted(summary["candidates"], key=lambda c: c["weights"], reverse=not two)
    reported = [*summary["parents"], summary["winner"]]
    order = list(dict.fromkeys(tuple(f["weights"]) for f in (*candidates, *reported)))
    places = {weights: weights[0] if two else i for i, weights in enumerate(order)}
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    if candidates:
        xs = [places[tuple(c["weights"])] for c in candidates]
        low, high = ([c["pc_success_ci95"][i] for c in candidates] for i in (0, 1))
        middle = [c["pc_success"] for c in candidates]
        axes.fill_between(xs, low, high, alpha=0.15, color="C0", label="95 % Wilson interval", linewidth=0)
        axes.plot(xs, middle, "-", color="C0", linewidth=1)
        axes.scatter(xs, middle, _sizes(candidates, 50), color="C0", label=_spent(candidates))
    for figures, marker, color, label in _marks(summary):
        y, (bottom, top) = figures["pc_success"], figures["pc_success_ci95"]
        x, bars = places[tuple(figures["weights"])], [[max(0, y - bottom)], [max(0, top - y)]]
        size = 14 if marker == "*" else 7
        axes.errorbar([x], [y], bars, fmt=marker, color=color, capsize=4, label=label, markersize=size, zorder=3)
    axes.set(ylabel="success, %", ylim=(-2, 102))
    if two:
        a, b = summary["policies"]
        axes.set(xlabel=f"weight of {a}   (the rest: {b})", xlim=(-0.03, 1.03))
    else:
        _ticks(axes, [mixture(weights) for weights in order])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="best")
    return figure


def _triangle(summary: Mapping[str, Any]) -> Figure:
    figure = _figure(8, 6)
    try:
        import mpltern  # noqa: F401 (it registers the projection)
    except ImportError:
        raise InputError(f"the plot of three policies needs mpltern: {install('report')}") from None
    axes: Any = figure.add_subplot(projection="ternary")
    colours = {"vmin": 0, "vmax": 100, "cmap": "viridis"}
    candidates = summary["candidates"]
    if candidates:
        rates = [c["pc_success"] for c in candidates]
        weights = zip(*(c["weights"] for c in candidates), strict=True)
        axes.scatter(*weights, c=rates, s=_sizes(candidates, 260), label=_spent(candidates), clip_on=False, **colours)
    for figures, marker, _, label in _marks(summary):
        place, (low, high) = [[w] for w in figures["weights"]], figures["pc_success_ci95"]
        label += f": {figures['pc_success']:.1f} % [{low:.1f}, {high:.1f}]"
        size = 200 if marker == "*" else 70
        points = axes.scatter(*place, c=[figures["pc_success"]], s=size, marker=marker, edgecolors="black", label=label,
                              linewidths=1.5, zorder=3, clip_on=False, **colours)  # fmt: skip
    for set_label, name in zip((axes.set_tlabel, axes.set_llabel, axes.set_rlabel), summary["policies"], strict=True):
        set_label(f"weight of {name}")
    for axis in (axes.taxis, axes.laxis, axes.raxis):
        axis.set_label_position("tick1")
    figure.colorbar(points, ax=axes, label="success, %", shrink=0.7, pad=0.12)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside lower center")
    return figure


@_own_style()
def success_plot(summary: Mapping[str, Any]) -> Figure:
    """Draw success of an evaluation, or of both sides of a comparison.

    If none is reported, the score is drawn.
    """
    several = summary.get("sides", [summary])
    success = any(reported(figures) for figures in several)
    key = "pc_success" if success else "avg_max_reward"
    names = [
        figures.get("name") or f"{' + '.join(summary['policies'])} {mixture(summary['weights'])}" for figures in several
    ]
    figure = _figure(8, 1 + 0.6 * len(several))
    axes = figure.subplots()
    for place, figures in enumerate(several):
        low, high = figures[f"{key}_ci95"]
        axes.errorbar(figures[key], place, xerr=[[figures[key] - low], [high - figures[key]]], fmt="o", capsize=4)
    axes.set_yticks(range(len(names)), [inert.short(name, 40) for name in names])
    axes.set(xlabel="success, % (95 % interval)" if success else "score (95 % interval)", ylim=(len(names) - 0.5, -0.5))
    if success:
        axes.set_xlim(-2, 102)
    axes.grid(alpha=0.3, axis="x")
    return figure


@_own_style()
def error_plot(errors: Mapping[str, Any]) -> Figure:
    """Draw errors, correlations and best weights of `denoising_error` over sigma."""
    sigmas, names = errors["sigmas"], list(errors["rms"])
    figure = _figure(12, 4)
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


@_own_style()
def disagreement_plot(diagnosis: Mapping[str, Any]) -> Figure:
    """Draw the disagreement of policies over sigma and along the episode."""
    figure = _figure(9, 4)
    levels, decisions = figure.subplots(1, 2)
    for pair, apart in diagnosis["disagreement_by_sigma"].items():
        levels.loglog(diagnosis["sigmas"], apart, "o-", label=pair)
        decisions.plot(diagnosis["disagreement_by_decision"][pair], "o-", label=pair)
    levels.set(title="by noise level", xlabel="sigma", ylabel="RMS distance, normalised actions")
    decisions.set(title="along an episode, mean over the levels", xlabel="decision")
    decisions.set_ylim(bottom=0)
    for axes in (levels, decisions):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


@_own_style()
def chunk_plot(chunks: Mapping[str, Array], picture: Array, pixels: Callable[[Array], Array] | None) -> Figure:
    """Draw the sampled chunks of each policy for one observation.

    Args:
        chunks: Actions (chunks, steps, action) by the name of the policy.
        picture: Image (height, width, 3) of the observation.
        pixels: Maps actions to places in the picture, over which they are drawn. Without it the first action dimensions are
            drawn over the steps, beside the picture.
    """
    if pixels is None:
        return _chunk_curves(chunks, picture)
    figure = _figure(3.2 * len(chunks), 3.5)
    for axes, (name, actions) in zip(figure.subplots(1, len(chunks), squeeze=False)[0], chunks.items(), strict=True):
        axes.imshow(picture)
        for chunk in pixels(actions):
            axes.plot(chunk[:, 0], chunk[:, 1], "-", linewidth=1, alpha=0.7, color="C3")
            axes.plot(*chunk[-1], ".", color="C3")
        axes.set(title=name, xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
        axes.axis("off")
    return figure


def _chunk_curves(chunks: Mapping[str, Array], picture: Array) -> Figure:
    dims = min(MOST_CURVES, next(iter(chunks.values())).shape[2])
    figure = _figure(3 * (dims + 1), 3.2)
    first, *others = figure.subplots(1, dims + 1)
    first.imshow(picture)
    first.axis("off")
    for dim, axes in enumerate(others):
        for k, (name, actions) in enumerate(chunks.items()):
            labels = [name] + ["_"] * (len(actions) - 1)
            axes.plot(actions[:, :, dim].T, color=f"C{k}", linewidth=0.8, alpha=0.6, label=labels)
        axes.set(title=f"action {dim}", xlabel="step")
        axes.grid(alpha=0.3)
    others[0].legend(fontsize=7)
    return figure


def _n_weights(summary: Mapping[str, Any]) -> int:
    """Return the number of weights: one for each policy and row of the composer."""
    return len(summary["winner"]["weights"])


def _marks(summary: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str, str, str]]:
    """Return (figures, marker, colour, label) of the parents, then of the winner."""
    winner = summary["winner"]
    marks = [(p, "s", "C1", f"{p['name']} alone") for p in summary["parents"]]
    marks.append((winner, "*", "C2", f"winner {mixture(winner['weights'])}"))
    return [(f, m, c, f"{label}, report seeds, {f['n_episodes']} episodes") for f, m, c, label in marks]


def _spent(candidates: Sequence[Mapping[str, Any]]) -> str:
    counts = [c["n_episodes"] for c in candidates]
    low, high = min(counts), max(counts)
    return f"search seeds, {low if low == high else f'{low} to {high}'} episodes each"


def _sizes(candidates: Sequence[Mapping[str, Any]], largest: float) -> list[float]:
    """Return marker areas in points squared, proportional to the episodes."""
    most = max(c["n_episodes"] for c in candidates)
    return [max(largest / 12, largest * c["n_episodes"] / most) for c in candidates]


def _ticks(axes: Axes, labels: Sequence[str]) -> None:
    """Name the places 0, 1, ... of an axis; the names are inert."""
    step = -(-len(labels) // MOST_TICKS)
    axes.set_xticks(
        range(0, len(labels), step), [inert.label(name) for name in labels[::step]], rotation=90, fontsize=6
    )


def _figure(width: float, height: float) -> Figure:
    return _figure_type()(figsize=(width, height), layout="constrained", dpi=130)


@cache
def _figure_type() -> type[Figure]:
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that a notebook shows, without pyplot."""

        def _repr_png_(self) -> bytes:
            return png(self, dpi=NOTEBOOK_DPI)

    return ShownFigure
