"""The picture of a benchmark, drawn from its table alone: a bar for each row, or lines over a column of numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..training.plots.style import INK, STYLE, save
from .timing import Plot, Result, Row

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9a9a9a")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P")  # one fewer, so that an eighth line is told from the first
COLUMNS = 2  # of panels of lines
TITLE_WIDTH = 90  # characters


def draw_result(result: Result, target: Path) -> bool:
    """Draws ``result`` into ``target`` (PNG). False, and nothing drawn, where no column holds numbers in every row."""
    plot = result.plot
    y = plot.y or _last_numbers(result.rows)
    if y is None:
        return False
    panels: dict[str, list[Row]] = {}
    for row in result.rows:
        panels.setdefault(", ".join(str(row[name]) for name in plot.panels if row[name] != ""), []).append(row)
    names = list(dict.fromkeys(str(row[plot.series]) if plot.series else "" for row in result.rows))
    style = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}
    with plt.rc_context(STYLE):
        if plot.x is None:
            _bars(panels, y, plot, style, result.title, target)
        else:
            _lines(panels, plot.x, y, plot, style, result.title, target)
    return True


def _last_numbers(rows: Sequence[Row]) -> str | None:
    """The last column that holds a number in every row."""
    return next(
        (name for name in reversed(rows[0]) if all(isinstance(row.get(name), (int, float)) for row in rows)), None
    )


def _number(value: float) -> str:
    """A number as people read it: 12,345, 0.976, 64."""
    return f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"


def _bars(
    panels: dict[str, list[Row]], y: str, plot: Plot, style: dict[str, tuple[str, str]], title: str, target: Path
) -> None:
    heights = [len(rows) + 1.2 for rows in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(10, 0.9 + 0.4 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
        squeeze=False,
    )
    for axis, (panel, rows) in zip(axes[:, 0], panels.items(), strict=True):
        places = np.arange(len(rows))[::-1]
        values = [float(row[y]) for row in rows]
        colours = [style[str(row[plot.series]) if plot.series else ""][0] for row in rows]
        axis.barh(places, values, color=colours, height=0.66)
        for place, value in zip(places, values, strict=True):
            axis.annotate(_number(value), (max(value, 0), place), (4, 0), textcoords="offset points", va="center")
        axis.set_yticks(places, _labels(rows, y, plot), color=INK)
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.12)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        axis.set_xlabel(y)
        axis.set_title(panel)
    _finish(figure, title, target)


def _labels(rows: Sequence[Row], y: str, plot: Plot) -> list[str]:
    """What the bars are called: their text, and where that does not tell them apart all that is left of the drawn
    column, numbers under their names."""
    text = tuple(name for name in rows[0] if isinstance(rows[0][name], str))
    left = tuple(list(rows[0])[: list(rows[0]).index(y)])
    labels: list[str] = []
    for columns in (plot.label,) if plot.label else (text, left):
        shown = [name for name in columns if name not in plot.panels]
        labels = [
            ", ".join(
                v if isinstance(v := row[name], str) else f"{name} {_number(v)}" for name in shown if row[name] != ""
            )
            for row in rows
        ]
        if len(set(labels)) == len(rows):
            break
    return labels


def _lines(
    panels: dict[str, list[Row]],
    x: str,
    y: str,
    plot: Plot,
    style: dict[str, tuple[str, str]],
    title: str,
    target: Path,
) -> None:
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(1.5 + 4.6 * columns, 1.2 + 3.1 * lines), layout="constrained", squeeze=False
    )
    for axis, (panel, rows) in zip(axes.ravel(), panels.items(), strict=False):
        for name, (colour, marker) in style.items():
            points = sorted(
                (float(row[x]), float(row[y])) for row in rows if not plot.series or str(row[plot.series]) == name
            )
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=marker, label=name, linewidth=1.8)
        axis.set_title(panel)
        axis.set_xlabel(x)
        axis.set_ylabel(y)
        if plot.log:
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=_ticks([float(row[y]) for row in rows])))
            axis.set_xticks(sorted({float(row[x]) for row in rows}))
        for direction in (axis.xaxis, axis.yaxis):
            direction.set_minor_locator(NullLocator())
            direction.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    for axis in axes.ravel()[len(panels) :]:
        axis.set_axis_off()
    if len(style) > 1:
        lines_by_name = {line.get_label(): line for axis in axes.ravel() for line in axis.lines}
        figure.legend(
            [lines_by_name[name] for name in style],
            list(style),
            title=plot.series,
            alignment="left",
            loc="outside lower left",
            ncols=4,
            frameon=False,
        )
    _finish(figure, title, target)


def _ticks(values: Sequence[float]) -> tuple[float, ...]:
    """What is marked in a decade of a logarithmic axis: the less, the more decades there are."""
    spread = max(values) / min(values)
    if spread < 3:
        return (1, 1.2, 1.5, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    return (1, 1.5, 2, 3, 5, 7) if spread < 10 else (1, 2, 5) if spread < 300 else (1,)


def _finish(figure: Figure, title: str, target: Path) -> None:
    figure.suptitle(textwrap.fill(title, TITLE_WIDTH), x=0.01, ha="left", fontweight="bold", color=INK)
    save(figure, target)
