"""The pictures of a report: what k and width cost, and all rows side by side. A dot is a seed, a line joins means, a
dashed line is the dense twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator, PercentFormatter

from .compare import Comparison, Row, front, k_text

# Okabe and Ito's colours, which the colour-blind can tell apart; a marker each, for those who see none.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MAX_TICKS = 6
MAX_SERIES = 12  # more cannot be told apart: those with the lowest losses are drawn, and that is said
MAX_ROWS = 60  # of these too
LONG_LABEL = 30  # characters: two of them do not stand side by side
PANELS = (
    ("val_loss", "validation loss (nats per token)"),
    ("val_bpb", "bits per byte"),
    ("dead_worst", "dead neurons, worst layer"),
    ("tokens_per_second", "tokens per second"),
)
PICTURES = ("curves", "rows", "training")
SHARES = ("dead_worst", "cost", "energy_kept_last")


def draw(comparison: Comparison) -> dict[str, Figure]:
    """The pictures that the runs have something for, by name; close each when done."""
    makers = (_against_k_and_width, _side_by_side, _over_training)
    made = {name: make(comparison) for name, make in zip(PICTURES, makers, strict=True)}
    return {name: figure for name, figure in made.items() if figure is not None}


def _loss(row: Row) -> float:
    return row.results["val_loss"].mean if "val_loss" in row.results else math.inf


def _best(rows: Sequence[Row], count: int) -> list[Row]:
    """The ``count`` rows with the lowest losses, in their order, with the dense ones, whatever those have."""
    sparse = sorted((row for row in rows if not row.is_dense), key=_loss)
    kept = sparse[: max(0, count - (len(rows) - len(sparse)))]
    return [row for row in rows if row.is_dense or any(row is one for one in kept)][:count]


def _say_how_many(figure: Figure, drawn: int, there: int, what: str) -> None:
    if drawn < there:
        figure.suptitle(f"{drawn} of {there} {what}, those with the lowest losses", fontsize="small")


# --- against k, k/d and width -----------------------------------------------------------------------------------------


def _against_k_and_width(comparison: Comparison) -> Figure | None:
    rows = [row for row in comparison.rows if "val_loss" in row.results]
    sparse = [row for row in rows if not row.is_dense]

    def by_width(row: Row) -> tuple[str, ...]:
        return (f"width {row.facts['width']}", *row.apart)

    def by_k(row: Row) -> tuple[str, ...]:
        return (k_text(row.facts), *row.apart)

    def by_share(row: Row) -> tuple[str, ...]:
        return (f"k/d {row.facts['k_over_d']:.3g}", *row.apart)

    same_k = len({by_k(row) for row in sparse}) <= len({by_share(row) for row in sparse})
    columns: list[tuple[str, str, Callable[[Row], tuple[str, ...]]]] = [
        ("k", "k: entries kept per token", by_width),
        ("k_over_d", "k/d: share of the width", by_width),
        ("width", "width d of the residual stream", by_k if same_k else by_share),
    ]
    if len({row.facts["width"] for row in sparse}) == 1:
        del columns[1]  # k once more, on another scale
    found = [(x, label, lines) for x, label, series in columns if (lines := _lines(sparse, x, series))]
    if not found:
        return None
    drawn = [(x, label, _best_lines(lines)) for x, label, lines in found]
    panels = [panel for panel in PANELS if any(panel[0] in row.results for row in sparse)]
    figure = plt.figure(figsize=(1.2 + 4.4 * len(drawn), 1.2 + 2.7 * len(panels)), layout="constrained")
    parts = figure.subfigures(1, len(drawn), wspace=0.02, squeeze=False)[0]
    legend_lines = 2 + max(len(lines) for _, _, lines in drawn)
    most = max((lines for _, _, lines in found), key=len)
    _say_how_many(figure, min(len(most), MAX_SERIES), len(most), "series")
    for part, (x, label, lines) in zip(parts, drawn, strict=True):
        _column(part, x, label, lines, panels, [row for row in rows if row.is_dense], legend_lines)
    return figure


def _lines(
    rows: Sequence[Row], x: str, series_of: Callable[[Row], tuple[str, ...]]
) -> dict[tuple[str, ...], list[Row]]:
    """The rows by their series, for those series that have more than one value of ``x``."""
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        lines.setdefault(series_of(row), []).append(row)
    return {key: line for key, line in lines.items() if len({row.facts[x] for row in line}) > 1}


def _best_lines(lines: dict[tuple[str, ...], list[Row]]) -> dict[tuple[str, ...], list[Row]]:
    kept = sorted(lines, key=lambda key: min(map(_loss, lines[key])))[:MAX_SERIES]
    return {key: line for key, line in lines.items() if key in kept}


def _column(
    part: SubFigure,
    x: str,
    x_label: str,
    series: dict[tuple[str, ...], list[Row]],
    panels: Sequence[tuple[str, str]],
    dense: Sequence[Row],
    legend_lines: int,
) -> None:
    axes = np.atleast_1d(part.subplots(len(panels), 1, sharex=True))
    shown = [row for rows in series.values() for row in rows]
    for axis, (name, label) in zip(axes, panels, strict=True):
        for i, rows in enumerate(series.values()):
            _line(axis, rows, x, name, _style(i))
            if x != "width" and any(name in row.dense for row in rows):
                level = float(np.mean([row.dense[name] for row in rows if name in row.dense]))
                axis.axhline(level, color=_style(i)["color"], linestyle="--", linewidth=1.2)
        if x == "width":
            known = [row for row in dense if name in row.results]
            for apart in dict.fromkeys(row.apart for row in known):
                points = sorted((row.facts["width"], row.results[name].mean) for row in known if row.apart == apart)
                axis.plot(*zip(*points, strict=True), color="black", linestyle="--", linewidth=1.2)
        elif name in ("val_loss", "val_bpb") and len(series) > 1:
            points = front([(row.facts[x], row.results[name].mean) for row in shown if name in row.results])
            axis.plot(*zip(*points, strict=True), color="0.75", linewidth=6, solid_capstyle="round", zorder=0)
        axis.set_ylabel(label)
        _finish(axis, name)
    _ticks(axes[-1], sorted({row.facts[x] for row in shown}))
    axes[-1].set_xlabel(x_label)
    handles = [Line2D([], [], label=", ".join(key), markersize=5, **_style(i)) for i, key in enumerate(series)]
    if dense:
        colour = "black" if x == "width" else "0.4"
        handles.append(Line2D([], [], color=colour, linestyle="--", label="dense twin"))
    if x != "width" and len(series) > 1:
        handles.append(Line2D([], [], color="0.75", linewidth=6, label="lowest loss at this k or less"))
    columns = 2 if max(len(str(handle.get_label())) for handle in handles) < LONG_LABEL else 1
    handles += [Line2D([], [], linestyle="", label=" ")] * (legend_lines - len(handles))  # panels of equal height
    part.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize="small", frameon=False)


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "linestyle": "-" if i < 7 else ":"}


def _line(axis: Axes, rows: Sequence[Row], x: str, name: str, style: dict[str, Any]) -> None:
    known = sorted((row for row in rows if name in row.results), key=lambda row: row.facts[x])
    if not known:
        return
    xs = [row.facts[x] for row in known]
    axis.plot(xs, [row.results[name].mean for row in known], linewidth=1.6, markersize=5, **style)
    for at, row in zip(xs, known, strict=True):
        if row.results[name].n > 1:
            dots = row.results[name].values
            axis.plot([at] * len(dots), dots, linestyle="", marker=".", markersize=5, alpha=0.5, color=style["color"])


def _finish(axis: Axes, name: str) -> None:
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if name in SHARES:
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        top = max(0.01, axis.get_ylim()[1])
        axis.set_ylim(-0.03 * top, top)  # a marker at zero is seen whole
    elif name == "tokens_per_second":
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _ticks(axis: Axes, values: Sequence[float]) -> None:
    """The values themselves on a logarithmic axis, as many as there is room for."""
    axis.set_xscale("log", base=2)
    shown = _apart(values)
    axis.set_xticks(shown, [f"{value:.3g}" if value < 1 else f"{value:g}" for value in shown])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _apart(values: Sequence[float]) -> list[float]:
    """Of ascending values, those that leave room for the label of the one before."""
    room = np.log2(values[-1] / values[0]) / MAX_TICKS if len(values) > 1 else 0
    kept = [values[0]]
    for value in values[1:]:
        if np.log2(value / kept[-1]) >= room:
            kept.append(value)
    return kept


# --- all rows, side by side -------------------------------------------------------------------------------------------


def _side_by_side(comparison: Comparison) -> Figure | None:
    """A line per row: the loss of each seed, what sparsity costs, dead neurons and speed."""
    measured = [row for row in comparison.rows if "val_loss" in row.results]
    if len(measured) < 2:
        return None
    rows = _best(measured, MAX_ROWS)
    wanted = (PANELS[0], ("cost", "cost of sparsity"), *PANELS[2:])
    panels = tuple(panel for panel in wanted if any(panel[0] in row.results for row in rows))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2 + 3.1 * len(panels), 1.3 + 0.32 * len(rows)), sharey=True, layout="constrained"
    )
    _say_how_many(figure, len(rows), len(measured), "rows")
    places = list(range(len(rows)))[::-1]
    for axis, (name, label) in zip(np.atleast_1d(axes), panels, strict=True):
        for place, row in zip(places, rows, strict=True):
            if name not in row.results:
                continue
            colour = "black" if row.is_dense else COLOURS[0]
            stat = row.results[name]
            if stat.n > 1:
                axis.plot(
                    stat.values, [place] * stat.n, linestyle="", marker="o", markersize=4, alpha=0.45, color=colour
                )
            axis.plot(stat.mean, place, marker="D" if row.is_dense else "o", markersize=7, color=colour, zorder=3)
            if name in row.dense and not row.is_dense:
                axis.plot(row.dense[name], place, marker="|", markersize=13, markeredgewidth=1.6, color=COLOURS[1])
        levels = [row.results[name].mean for row in rows if row.is_dense and name in row.results]
        if len(levels) == 1:
            axis.axvline(levels[0], color=COLOURS[1], linestyle="--", linewidth=1.2, zorder=0)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if name in SHARES:
            axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if name == "cost":
            axis.axvline(0, color=COLOURS[1], linestyle="--", linewidth=1.2, zorder=0)
        if name == "dead_worst":
            axis.set_xlim(left=-0.002, right=max(0.01, axis.get_xlim()[1]))
        if name == "tokens_per_second":
            axis.set_xlim(left=0)
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
    np.atleast_1d(axes)[0].set_yticks(places, [row.label for row in rows])
    handles = [Line2D([], [], color=COLOURS[0], marker="o", linestyle="", label="mean (small: each seed)")]
    if any(row.dense for row in rows):
        handles.append(
            Line2D(
                [],
                [],
                color=COLOURS[1],
                marker="|",
                markersize=12,
                markeredgewidth=1.6,
                linestyle="",
                label="dense twin",
            )
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    return figure


# --- over training ----------------------------------------------------------------------------------------------------


def _over_training(comparison: Comparison) -> Figure | None:
    """Validation loss at the final k over the tokens of each run, those still running included."""
    begun = [row for row in comparison.rows if any("val/loss_final_k" in run.curves for run in row.runs)]
    if not begun:
        return None
    shown = _best(begun, MAX_SERIES)
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    _say_how_many(figure, len(shown), len(begun), "rows")
    for i, row in enumerate(shown):
        style = {**_style(i), "linestyle": "--" if row.is_dense else "-"}
        for run in row.runs:
            steps, losses = run.curves.get("val/loss_final_k", ((), ()))
            tokens = np.array(steps) * run.plain["training"]["batch_tokens"] / 1e6
            axis.plot(tokens, losses, linewidth=1.2, markersize=3.5, alpha=0.8, **style)
    axis.set_xlabel("million tokens")
    axis.set_ylabel("validation loss at the final k\n(nats per token)")
    _finish(axis, "val_loss")
    handles = [
        Line2D([], [], label=row.label, **{**_style(i), "linestyle": "--" if row.is_dense else "-"})
        for i, row in enumerate(shown)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize="small", frameon=False)
    return figure


def save(figures: dict[str, Figure], folder: Path) -> None:
    """Writes each as ``NAME.png``."""
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
