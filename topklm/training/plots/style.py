"""What the pictures of a run share: fonts, colours, axes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Series = dict[str, tuple[np.ndarray, np.ndarray]]  # metric -> steps, values

DPI = 120
LINE, SAME_PLACE = 0.065, 0.004  # of the height of an axis: a line of text; what the eye cannot tell apart
INK, MUTED, GRID = "#222222", "#6b6b6b", "#e4e4e4"
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#9a9a9a"  # told apart by the colour-blind (Okabe and Ito)
STYLE: Any = {
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


def spread(n: int, most: int) -> np.ndarray:
    """At most ``most`` of the numbers from 0 to n - 1, the first and the last and some between."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int))


def token_unit(most: float) -> tuple[float, str]:
    """In what to count up to ``most`` tokens: the unit and its name."""
    names = ((1e9, "billion tokens"), (1e6, "million tokens"), (1e3, "thousand tokens"))
    return next(((unit, name) for unit, name in names if most >= unit), names[-1])


def tokens_axis(axis: Axes, most: float) -> float:
    """An x axis from 0 to ``most`` tokens; returns what to divide tokens by."""
    unit, name = token_unit(most)
    axis.set_xlabel(name)
    axis.set_xlim(0, max(most, 1) / unit)  # a run may have step 0 alone
    return unit


def label_ends(axis: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Writes names at the right of curves in their colours; curves that end in one place share a line, and lines are
    moved apart where they would overlap.

    Args:
        ends: the last value, name and colour of each curve, in order of layers. The axis must have its final limits.
    """
    low, high = axis.get_ylim()
    ends = [end for end in ends if np.isfinite(end[0])]
    groups: list[list[tuple[float, str, Any]]] = []
    for end in sorted(ends, key=lambda end: end[0]):
        if groups and (end[0] - groups[-1][0][0]) / (high - low) < SAME_PLACE:
            groups[-1].append(end)
        else:
            groups.append([end])
    places = _apart(np.array([(group[0][0] - low) / (high - low) for group in groups]).clip(0, 1))
    for place, group in zip(places, groups, strict=True):
        name = group[0][1] if len(group) == 1 else "all layers" if len(group) == len(ends) else f"{len(group)} layers"
        colour = group[0][2] if len(group) == 1 else INK
        axis.text(1.015, place, name, color=colour, transform=axis.transAxes, va="center", ha="left", fontsize=9.5)


def _apart(places: np.ndarray) -> np.ndarray:
    """Moves sorted places a line apart or more, little, and within 0 and 1 as far as there is room."""
    offsets = LINE * np.arange(len(places))
    up = np.maximum.accumulate(places - offsets)  # each pushed up by those below, then down by those above
    down = np.minimum.accumulate((places - offsets)[::-1])[::-1]
    level = ((up + down) / 2).clip(max=1 - LINE * (len(places) - 1)).clip(min=0)
    return level + offsets


def nothing(axis: Axes, why: str) -> None:
    axis.set_axis_off()
    axis.text(0.5, 0.5, why, ha="center", va="center", color=MUTED, transform=axis.transAxes)


def save(figure: Figure, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=DPI, facecolor="white")
    plt.close(figure)
