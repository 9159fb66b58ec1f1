"""The interactive charts of a page, drawn by Bokeh (bokeh.org): one function draws one chart, or None if there is nothing to draw.

Sources with a column "episode" are selectable: a click shows the episode (`gpc/page.js`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from gpc.inert import label
from gpc.results.leaderboard import OUTCOMES, Run, outcomes, progress
from gpc.results.page import check_charts
from gpc.results.run_folder import Row
from gpc.results.summary import mixture
from gpc.types import Array

MOST_POINTS = 3000  # of one curve
WON, LOST, UNKNOWN = "#2a6fa8", "#f0b27a", "#8899aa"
WINNER, PARENT = "#238b45", "#d95f02"
COLOURS = ("#2a6fa8", "#d95f02", "#238b45", "#7b52ab", "#b8860b", "#c2185b", "#00838f", "#6d4c41")
TICK_LENGTH, LEGEND_LENGTH, MOST_TICKS = 22, 36, 34
INTERVAL = ("95 % interval", "@low{0.0} to @high{0.0} %")
Columns = dict[str, Any]


def weights_chart(summary: Mapping[str, Any]) -> Any:
    """Draw success over the weights: a curve, a triangle, or single points.

    Search seeds give the points, whose area grows with their episodes; report seeds give the marks.
    """
    candidates, marks = summary["candidates"], _marks(summary)
    if not candidates and not marks:
        return None
    length = len((candidates or [marks[0][1]])[0]["weights"])
    return (_triangle if length == 3 else _curve)(summary["policies"], candidates, marks, length == 2)


def _curve(policies: Sequence[str], candidates: Sequence[Any], marks: Sequence[Any], two: bool) -> Any:
    tried = sorted(candidates, key=lambda c: c["weights"], reverse=not two)
    order = list(dict.fromkeys(tuple(f["weights"]) for f in (*tried, *(figures for _, figures, _ in marks))))
    places = {weights: weights[0] if two else i for i, weights in enumerate(order)}
    plot = _plot(360, f"weight of {policies[0]}, the rest {policies[1]}" if two else "weights", "success, %")
    plot.y_range.start, plot.y_range.end = -3, 103
    if tried:
        points = _figures(tried, [places[tuple(c["weights"])] for c in tried])
        source = _source(points | {"size": _sizes(tried)})
        plot.varea("x", "low", "high", source=source, fill_color=WON, fill_alpha=0.15, legend_label="95 % interval")
        plot.line("x", "rate", source=source, color=WON)
        drawn = plot.scatter("x", "rate", size="size", source=source, color=WON, legend_label="search seeds")
        _hover(plot, drawn, _TIPS)
    for name, figures, colour in marks:
        source = _source(_figures([figures], [places[tuple(figures["weights"])]]))
        plot.segment("x", "low", "x", "high", source=source, color=colour, line_width=2)
        drawn = plot.scatter("x", "rate", source=source, color=colour, size=17 if colour == WINNER else 11,
                             marker="star" if colour == WINNER else "square", legend_label=_short(name, LEGEND_LENGTH))  # fmt: skip
        _hover(plot, drawn, [("report seeds", _constant(name)), *_TIPS])
    if not two:
        _names(plot, [mixture(weights) for weights in order])
    return _with_legend(plot)


def _triangle(policies: Sequence[str], candidates: Sequence[Any], marks: Sequence[Any], _: bool) -> Any:
    from bokeh.models import ColorBar, LinearColorMapper

    plot = _plot(470, "", "")
    plot.axis.visible = plot.grid.visible = False
    plot.x_range.start, plot.x_range.end = -0.35, 1.35
    plot.y_range.start, plot.y_range.end = -0.12, 0.98
    plot.line([0, 1, 0.5, 0], [0, 0, np.sqrt(0.75), 0], color="#999999")
    for (x, y), name, align in zip(
        ((0, 0), (1, 0), (0.5, np.sqrt(0.75))), policies, ("top", "top", "bottom"), strict=True
    ):
        source = _source({"x": [x], "y": [y], "text": [_short(name)]})
        plot.text("x", "y", "text", source=source, text_align="center", text_baseline=align, y_offset=-8 if y else 8,
                  text_font_size="13px", text_color="#222222")  # fmt: skip
    mapper = LinearColorMapper("Viridis256", low=0, high=100)
    groups = [("search seeds", candidates, "circle", [1.6 * size for size in _sizes(candidates)])]
    groups += [
        (name, [f], "star" if c == WINNER else "square", [24.0 if c == WINNER else 15.0]) for name, f, c in marks
    ]
    for name, figures, marker, sizes in groups:
        if figures:
            _, b, c = np.array([f["weights"] for f in figures]).T
            source = _source(_figures(figures, b + c / 2) | {"y": c * np.sqrt(0.75), "size": sizes})
            drawn = plot.scatter("x", "y", size="size", marker=marker, source=source, legend_label=_short(name, LEGEND_LENGTH),
                                 line_color="#333333", fill_color={"field": "rate", "transform": mapper})  # fmt: skip
            _hover(plot, drawn, [("", _constant(name)), *_TIPS])
    plot.add_layout(ColorBar(color_mapper=mapper, width=12, title="%"), "right")
    return _with_legend(plot)


def race_chart(summary: Mapping[str, Any]) -> Any:
    """Draw the search episodes that each candidate got, won and lost."""
    tried = sorted(summary["candidates"], key=lambda c: c["weights"], reverse=True)
    if not tried:
        return None
    plot = _plot(280, "weights", "search episodes")
    won = np.array([c["n_success"] for c in tried])
    spent = np.array([c["n_episodes"] for c in tried])
    source = _source(_figures(tried, np.arange(len(tried))) | {"won": won, "spent": spent})
    for low, high, colour, name in ((0, "won", WON, "won"), ("won", "spent", LOST, "lost")):
        drawn = plot.vbar("x", 0.85, high, low, source=source, color=colour, legend_label=name)
        _hover(plot, drawn, _TIPS)
    _names(plot, [mixture(c["weights"]) for c in tried])
    plot.y_range.start = 0
    return _with_legend(plot)


def outcome_chart(run: Run, phase: str, names: Sequence[str]) -> Any:
    """Draw every seed (a row) under all weights (columns).

    Rows are sorted by the outcomes of winner and parents: on top are the seeds that the mixture alone wins.

    Args:
        run: The run.
        phase: "report", "search" or "compare".
        names: Policy or mixture of each row of the run.
    """
    episodes = [(k, row) for k, row in enumerate(run.rows) if row.phase == phase]
    if not episodes:
        return None
    classes, wins = (outcomes(run, phase) if run.summary["kind"] == "search" else {}), dict[int, int]()
    for _, row in episodes:
        wins[row.seed] = wins.get(row.seed, 0) + row.success
    place = {seed: OUTCOMES.index(classes[seed]) if seed in classes else len(OUTCOMES) for seed in wins}
    order = sorted(wins, key=lambda seed: (place[seed], -wins[seed], seed))
    y = {seed: -i for i, seed in enumerate(order)}
    columns = sorted({(row.candidate, row.weights): names[k] for k, row in episodes}.items(), key=_winner_first)
    x = {key: i for i, (key, _) in enumerate(columns)}
    rotated = 110 if len(columns) > 3 else 60
    plot = _plot(int(np.clip(14 * len(order), 160, 620)) + rotated, "", "seeds, sorted")
    plot.max_width = 110 + max(14, min(1000 // len(columns), 110)) * len(columns)
    plot.yaxis.major_tick_line_color = plot.yaxis.major_label_text_color = None
    plot.grid.visible = False
    cells = {
        "x": np.array([x[row.candidate, row.weights] for _, row in episodes], np.int32),
        "y": np.array([y[row.seed] for _, row in episodes], np.int32),
        "colour": [_colour(row) for _, row in episodes],
        "phase": [phase] * len(episodes),
        **_episodes(episodes, [names[k] for k, _ in episodes]),
    }
    drawn = plot.rect("x", "y", 0.94, 1, source=_source(cells), color="colour", line_color="#ffffff",
                      line_width=0.4 if len(order) < 250 else 0)  # fmt: skip
    _hover(plot, drawn, _EPISODE_TIPS)
    places = [place[seed] for seed in order]
    edges = [-i - 0.5 for i in range(len(order) - 1) if places[i] != places[i + 1]]
    plot.hspan(y=edges, line_color="#222222", line_width=1)
    _names(plot, [name for _, name in columns])
    return plot


def _winner_first(column: tuple[tuple[int, tuple[float, ...]], str]) -> tuple[Any, ...]:
    """Return the sort key of a column: the winner is first."""
    (candidate, weights), name = column
    return not name.startswith("winner "), [-w for w in weights], candidate


def progress_chart(runs: Mapping[str, Run]) -> Any:
    """Draw the success of the leading candidate over the search episodes.

    The leader is that of `gpc.results.leaderboard.progress`.
    """
    plot, drawn = _plot(320, "search episodes spent", "success, %"), 0
    plot.y_range.start, plot.y_range.end = -3, 103
    for i, (name, run) in enumerate(runs.items()):
        rows, colour = [row for row in run.rows if row.phase == "search"], COLOURS[i % len(COLOURS)]
        if not rows:
            continue
        drawn += 1
        leading = 100 * progress(rows)
        source = _source({"x": np.arange(1, len(rows) + 1), "rate": leading})
        line = plot.step(
            "x", "rate", mode="after", source=source, color=colour, legend_label=_short(name, LEGEND_LENGTH)
        )
        _hover(plot, line, [("run", _constant(name)), ("episodes", "@x"), ("the leader", "@rate{0.0} %")], "vline")
        if winner := run.summary["winner"]:
            source = _source(_figures([winner], [len(rows)]))
            plot.segment("x", "low", "x", "high", source=source, color=colour, line_width=2)
            star = plot.scatter("x", "rate", source=source, marker="star", size=17, color=colour,
                                legend_label="winner, report seeds")  # fmt: skip
            _hover(plot, star, _TIPS)
    return _with_legend(plot) if drawn else None


def score_chart(run: Run) -> Any:
    """Draw the score of every episode of an evaluation."""
    rows = sorted(
        ((k, row) for k, row in enumerate(run.rows) if row.phase == "evaluate"), key=lambda item: item[1].seed
    )
    if not rows:
        return None
    plot = _plot(300, "seed", "score")
    plot.xaxis.formatter.use_scientific = False
    groups: dict[str, list[Any]] = {}
    for item in rows:
        groups.setdefault(result_of(item[1]), []).append(item)
    for result, items in groups.items():
        cells = {"x": np.array([row.seed for _, row in items], np.float64), **_episodes(items, ["" for _ in items])}
        colour = {"won": WON, "lost": "#d95f02"}.get(result, UNKNOWN)
        drawn = plot.scatter("x", "score", source=_source(cells), size=7, color=colour, fill_alpha=0.7,
                             legend_label=f"{result}, {len(items)}")  # fmt: skip
        _hover(plot, drawn, _EPISODE_TIPS[1:])
    figures = run.summary
    mean = plot.line([rows[0][1].seed, rows[-1][1].seed], [figures["avg_max_reward"]] * 2, color="#222222",
                     line_dash="dashed", legend_label=f"mean {figures['avg_max_reward']:.3f}")  # fmt: skip
    mean.level = "underlay"
    return _with_legend(plot)


def reward_chart(rewards: Mapping[str, tuple[Array, Array]]) -> Any:
    """Draw the mean reward at each step of an episode, by group.

    Args:
        rewards: Mean rewards (steps,) and numbers of episodes that still run (steps,), by group.
    """
    if not rewards:
        return None
    plot = _plot(300, "step", "reward")
    for i, (name, (mean, count)) in enumerate(rewards.items()):
        step = -(-len(mean) // 500)
        colour = {"won": WON, "lost": "#d95f02"}.get(name, COLOURS[i % len(COLOURS)])
        source = _source({"x": np.arange(1, len(mean) + 1)[::step], "mean": mean[::step], "n": count[::step]})
        drawn = plot.line(
            "x", "mean", source=source, color=colour, line_width=2, legend_label=_short(name, LEGEND_LENGTH)
        )
        tips = [
            ("episodes", _constant(name)),
            ("step", "@x"),
            ("mean reward", "@mean{0.0000}"),
            ("still running", "@n"),
        ]
        _hover(plot, drawn, tips, "vline")
    return _with_legend(plot)


def lines_chart(
    lines: Mapping[str, Sequence[float]], x: Sequence[float], x_name: str, y_name: str, log: str = ""
) -> Any:
    """Draw several curves over the same places.

    Args:
        lines: Values of each curve, by name.
        x: The places.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
        log: "x", "y" or "xy" for logarithmic axes.
    """
    plot = _plot(300, x_name, y_name, log)
    for i, (name, values) in enumerate(lines.items()):
        source, colour = _source({"x": np.asarray(x), "value": np.asarray(values)}), COLOURS[i % len(COLOURS)]
        plot.line("x", "value", source=source, color=colour, legend_label=_short(name, LEGEND_LENGTH))
        drawn = plot.scatter(
            "x", "value", source=source, color=colour, size=6, legend_label=_short(name, LEGEND_LENGTH)
        )
        _hover(plot, drawn, [("", _constant(name)), (x_name, "@x{0.000}"), (y_name, "@value{0.0000}")])
    return _with_legend(plot)


def action_chart(name: str, at: Array, lines: Mapping[str, Array], limits: Sequence[float | None], holds: Array) -> Any:
    """Draw one dimension of the actions on a robot.

    Args:
        name: The dimension.
        at: Times (periods,), in seconds.
        lines: Values (periods,), by name.
        limits: Position limits; None: not limited.
        holds: Periods (periods,) without a fresh action.
    """
    plot, step = _plot(240, "s", name), -(-len(at) // MOST_POINTS)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
    if len(edges):
        ends = np.append(at, at[-1])
        plot.vstrip(ends[edges[::2]], ends[edges[1::2]], fill_color="#d95f02", fill_alpha=0.2, line_color=None,
                    legend_label="held or stopped")  # fmt: skip
    for i, (label_of, values) in enumerate(lines.items()):
        if not np.isnan(values).all():
            source = _source({"x": at[::step], "value": values[::step]})
            wide = {"line_width": 5, "line_alpha": 0.35} if i == 0 else {"line_width": 1.5}
            drawn = plot.line("x", "value", source=source, color=COLOURS[i], legend_label=label_of, **wide)
            _hover(plot, drawn, [("", label_of), ("s", "@x{0.00}"), (_constant(name), "@value{0.0000}")], "vline")
    for limit in limits:
        if limit is not None:
            plot.hspan(y=[limit], line_color="#888888", line_dash="dashed")
    return _with_legend(plot) if plot.legend else plot


def timing_chart(at: Array, late: Array, age: Array) -> Any:
    """Draw how late each period was, and how old the chunk behind its action."""
    step = -(-len(at) // MOST_POINTS) or 1
    plot = _plot(260, "s", "ms")
    for name, seconds, colour in (("late", late, "#d95f02"), ("age of the observation behind the action", age, WON)):
        source = _source({"x": at[::step], "value": 1000 * seconds[::step]})
        drawn = plot.line("x", "value", source=source, color=colour, legend_label=name)
        _hover(plot, drawn, [("", name), ("s", "@x{0.00}"), ("ms", "@value{0.0}")], "vline")
    return _with_legend(plot)


def error_charts(errors: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return the functions that draw `denoising_error` over sigma, by name."""
    sigmas, names = errors["sigmas"], list(errors["rms"])
    pairs = list(combinations(range(len(names)), 2))
    alike = {f"{names[i]}, {names[j]}": [level[i][j] for level in errors["correlation"]] for i, j in pairs}
    best = {name: [level[k] for level in errors["weights_per_level"]] for k, name in enumerate(names)}
    return {
        "one-step denoising error": partial(
            lines_chart, errors["rms"], sigmas, "sigma", "RMS, normalised actions", "xy"
        ),
        "correlation of the errors": partial(lines_chart, alike, sigmas, "sigma", "correlation", "x"),
        "weights with the least error": partial(lines_chart, best, sigmas, "sigma", "weight", "x"),
    }


def episode_table(run: Run, names: Sequence[str]) -> tuple[Any, dict[str, list[str]]]:
    """Return the table of episodes, failures first, and its filters' values.

    Args:
        run: The run.
        names: Policy or mixture of each row.
    """
    check_charts()
    from bokeh.models import BooleanFilter, CDSView, DataTable, NumberFormatter, TableColumn

    rank = {phase: i for i, phase in enumerate(("report", "evaluate", "compare", "search"))}
    order = sorted(range(len(run.rows)), key=lambda k: _failures_first(run, rank, k))
    items = [(k, run.rows[k]) for k in order]
    classes = {p: outcomes(run, p) for p in ("report", "search")} if run.summary["kind"] == "search" else {}
    cells = _episodes(items, [names[k] for k in order])
    cells["phase"] = [row.phase for _, row in items]
    cells["outcome"] = [classes.get(row.phase, {}).get(row.seed, "") for _, row in items]
    cells["reward"] = [row.sum_reward if row.sum_reward is not None else np.nan for _, row in items]
    filters = {name: list(dict.fromkeys(cells[name])) for name in ("policy", "phase", "result", "outcome")}
    filters = {name: sorted(filter(None, values)) for name, values in filters.items() if len(values) > 1}
    widths = {
        "episode": 60,
        "policy": 150,
        "phase": 60,
        "seed": 75,
        "result": 55,
        "score": 60,
        "reward": 95,
        "steps": 50,
    }
    widths |= {"outcome": 255} if any(cells["outcome"]) else {}
    exact = NumberFormatter(format="0.000")
    columns = [
        TableColumn(field=name, title="sum of rewards" if name == "reward" else name, width=width,
                    **({"formatter": exact} if name in ("score", "reward") else {}))
        for name, width in widths.items()
    ]  # fmt: skip
    height = 28 * min(14, len(items)) + 30
    table = DataTable(source=_source(cells), columns=columns, view=CDSView(filter=BooleanFilter()), index_position=None,
                      sizing_mode="stretch_width", height=height, row_height=28, reorderable=False)  # fmt: skip
    return table, filters


def _failures_first(run: Run, rank: Mapping[str, int], k: int) -> tuple[Any, ...]:
    row = run.rows[k]
    return row.success, rank[row.phase], row.score, row.seed, row.candidate


_TIPS = [("weights", "@weights"), ("success", "@rate{0.0} %: @k of @n"), INTERVAL, ("score", "@score{0.000}")]
_EPISODE_TIPS = [
    ("", "@policy"), ("seed", "@seed"), ("result", "@result"), ("score", "@score{0.000}"), ("steps", "@steps"),
    ("episode", "@episode (click)"),
]  # fmt: skip


def _constant(name: str) -> str:
    """Return a name as the text of a tooltip, in which @ and $ start a field."""
    return label(name).replace("@", "\uff20").replace("$", "\uff04").replace("{", "(").replace("}", ")")


def _figures(figures: Sequence[Mapping[str, Any]], x: Any) -> Columns:
    low, high = zip(*(f["pc_success_ci95"] for f in figures), strict=True)
    return {
        "x": np.asarray(x, np.float64),
        "rate": np.array([f["pc_success"] for f in figures]),
        "low": np.array(low),
        "high": np.array(high),
        "k": np.array([f["n_success"] for f in figures], np.float64),
        "n": np.array([f["n_episodes"] for f in figures], np.float64),
        "score": np.array([f["avg_max_reward"] for f in figures]),
        "weights": [mixture(f["weights"]) for f in figures],
    }


def _episodes(items: Sequence[tuple[int, Any]], names: Sequence[str]) -> Columns:
    return {
        "episode": np.array([k for k, _ in items], np.int32),
        "seed": np.array([row.seed for _, row in items], np.float64),
        "policy": list(names),
        "result": [result_of(row) for _, row in items],
        "score": np.array([row.score for _, row in items]),
        "steps": np.array([row.steps for _, row in items], np.float64),
    }


def result_of(row: Row) -> str:
    """Return the result of an episode in words."""
    return ("won" if row.success else "lost") if row.reported else "not reported"


def _colour(row: Any) -> str:
    return {"won": WON, "lost": LOST}.get(result_of(row), UNKNOWN)


def _marks(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """Return (name, figures, colour) of parents and winner on report seeds."""
    marks = [(f"{p['name']} alone", p, PARENT) for p in summary["parents"]]
    winner = summary["winner"]
    return [*marks, (f"winner {mixture(winner['weights'])}", winner, WINNER)] if winner else marks


def _sizes(figures: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return diameters of points whose area grows with the episodes."""
    most = max((f["n_episodes"] for f in figures), default=1)
    return [max(4.0, 12 * float(np.sqrt(f["n_episodes"] / most))) for f in figures]


def _plot(height: int, x: str, y: str, log: str = "") -> Any:
    check_charts()
    from bokeh.models import PlainText
    from bokeh.plotting import figure

    kinds: Any = {f"{axis}_axis_type": "log" for axis in log}
    plot = figure(height=height, sizing_mode="stretch_width", tools="tap,box_zoom,reset,save", active_drag=None,
                  x_axis_label=PlainText(text=label(x)), y_axis_label=PlainText(text=label(y)), **kinds)  # fmt: skip
    plot.toolbar.logo, plot.toolbar.autohide = None, True
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size, plot.axis.major_label_text_font_size = "13px", "12px"
    plot.axis.minor_tick_line_color = None
    plot.axis.axis_line_color = plot.axis.major_tick_line_color = "#999999"
    plot.outline_line_color = None
    return plot


def _source(columns: Columns) -> Any:
    from bokeh.models import ColumnDataSource

    return ColumnDataSource(dict(columns))


def _hover(plot: Any, drawn: Any, tips: Sequence[tuple[str, str]], mode: Any = "mouse") -> None:
    from bokeh.models import HoverTool

    plot.add_tools(HoverTool(renderers=[drawn], tooltips=list(tips), mode=mode, visible=False))


def _names(plot: Any, names: Sequence[str]) -> None:
    """Name the places 0, 1, ... of the horizontal axis."""
    from bokeh.models import PlainText

    step = -(-len(names) // MOST_TICKS)
    plot.xaxis.ticker = list(range(0, len(names), step))
    plot.xaxis.major_label_overrides = {i: PlainText(text=_short(names[i])) for i in range(0, len(names), step)}
    if len(names) > 3 or max(map(len, names)) > 10:
        plot.xaxis.major_label_orientation = np.pi / 2
    plot.x_range.start, plot.x_range.end = -0.6, len(names) - 0.4


def _short(name: str, length: int = TICK_LENGTH) -> str:
    name, half = label(name), length // 2
    return name if len(name) <= length else f"{name[:half]}…{name[half - length + 1 :]}"


def _with_legend(plot: Any) -> Any:
    """Move the legend below the plot, where it covers nothing."""
    legend = plot.legend[0]
    plot.add_layout(legend, "below")
    legend.border_line_color, legend.label_text_font_size, legend.location = None, "12px", "top_left"
    legend.padding, legend.spacing, legend.margin, legend.glyph_height, legend.label_height = 2, 0, 2, 16, 16
    plot.height += 16 * len(legend.items)
    return plot
