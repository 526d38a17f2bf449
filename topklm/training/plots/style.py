"""What the pictures of a run share: fonts, colours, axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> steps, values

DPI = 120
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e4e4e4"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9a9a9a"  # told apart by the colour-blind (Okabe and Ito)
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
}


def layer_colours(n: int) -> np.ndarray:
    """n colours from dark (the first layer) to light (the last)."""
    return plt.get_cmap("viridis")(np.linspace(0.0, 0.82, max(1, n)))


def labels_of(series: Series, prefix: str) -> list[str]:
    """Labels of the sites, in order, for which ``prefix/LABEL`` was logged."""
    return sorted(name.removeprefix(f"{prefix}/") for name in series if name.startswith(f"{prefix}/"))


def short(label: str) -> str:
    """A site's label as it stands in a picture: ``layer 3``, ``layer 3 mlp_neurons``."""
    _, number, *site = label.split("_")
    return " ".join([f"layer {int(number)}", *(["_".join(site)] if site else [])]) if number.isdigit() else label


def tokens_axis(axis: Axes, most: float) -> float:
    """Labels the x axis in thousand, million or billion tokens; returns what to divide tokens by."""
    unit, name = next(
        (unit, name)
        for unit, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
        if most >= unit or unit == 1e3
    )
    axis.set_xlabel(f"{name} tokens")
    return unit


def whole_numbers(axis: Axes) -> None:
    """Ticks of the y axis at whole numbers only."""
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def label_ends(axis: Axes, ends: Sequence[tuple[float, str, object]]) -> None:
    """Writes names at the right of curves in their colours, moved apart where they would overlap.

    Args:
        ends: the last value, name and colour of each curve. The axis must have its final limits.
    """
    low, high = axis.get_ylim()
    log = axis.get_yscale() == "log"
    places = [
        (np.log(max(value, low) / low) / np.log(high / low) if log else (value - low) / (high - low))
        for value, _, _ in ends
    ]
    gap = 0.075
    order = np.argsort(places, kind="stable")
    spread = np.array(places)[order]
    for _ in range(200):  # push neighbours apart until they fit
        moved = False
        for i in range(len(spread) - 1):
            lacking = gap - (spread[i + 1] - spread[i])
            if lacking > 1e-6:
                spread[i] -= lacking / 2
                spread[i + 1] += lacking / 2
                moved = True
        spread = np.clip(spread, 0.0 if len(spread) < 12 else -0.1, 1.05)
        if not moved:
            break
    for place, i in zip(spread, order, strict=True):
        _, name, colour = ends[i]
        axis.text(1.015, place, name, color=colour, transform=axis.transAxes, va="center", ha="left", fontsize=9.5)


def nothing(axis: Axes, why: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, why, ha="center", va="center", color=MUTED, transform=axis.transAxes)


def save(figure: Figure, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=DPI, facecolor="white")
    plt.close(figure)
