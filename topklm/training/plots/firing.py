"""How often neurons fire, layer by layer: the histogram of firing rates over time."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from .style import MUTED, ORANGE, STYLE, Series, save, short, spread, token_unit

PREFIX = "sparsity/firing_rate_log10/"
COLUMNS = 3
MOST_PANELS = 12  # layers in between are left out of the picture, and it says so
MOST_CURVES = 24  # histograms of a panel
# From light (the beginning) to dark (the end).
COLOURS = LinearSegmentedColormap.from_list("time", plt.get_cmap("viridis")(np.linspace(0.92, 0.0, 64)))

Histograms = dict[str, list[tuple[int, np.ndarray, np.ndarray]]]  # name -> step, edges, counts


def draw_firing_rates(histograms: Histograms, series: Series, target: Path, tokens_per_step: int, title: str) -> bool:
    """Draws a panel per TopK site into ``target`` (PNG): histograms of the firing rate, later ones darker. False
    where there are none: nothing is drawn."""
    labels = sorted(name.removeprefix(PREFIX) for name in histograms if name.startswith(PREFIX))
    if not labels:
        return False
    shown = [labels[i] for i in spread(len(labels), MOST_PANELS)]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(11.5, 0.9 + 2.7 * rows), layout="constrained", squeeze=False
        )
        left_out = f" ({len(shown)} of {len(labels)} layers)" if len(shown) < len(labels) else ""
        figure.suptitle(f"{title}: how often neurons fire{left_out}", x=0.01, ha="left", fontweight="bold")
        steps = sorted({step for label in shown for step, _, _ in histograms[PREFIX + label]})
        norm = Normalize(0, steps[-1] * tokens_per_step)
        for axis, label in zip(axes.flat, shown, strict=False):
            _panel(axis, histograms[PREFIX + label], series.get(f"k/{label}"), norm, tokens_per_step, label)
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis in list(axes.flat[: len(shown)])[-columns:]:
            axis.set_xlabel("share of tokens on which a neuron fires")
        for axis in axes[:, 0]:
            axis.set_ylabel("share of neurons")
        _time_bar(figure, axes, steps[-1] * tokens_per_step)
        save(figure, target)
    return True


def _panel(
    axis: Axes,
    entries: list[tuple[int, np.ndarray, np.ndarray]],
    k: tuple[np.ndarray, np.ndarray] | None,
    norm: Normalize,
    tokens_per_step: int,
    label: str,
) -> None:
    axis.set_title(short(label))
    chosen = spread(len(entries), MOST_CURVES)
    for i in chosen:
        step, edges, counts = entries[i]
        final = i == chosen[-1]
        colour = COLOURS(norm(step * tokens_per_step))
        axis.stairs(counts / counts.sum(), 10**edges, color=colour, linewidth=2.2 if final else 0.9, fill=False)
    step, edges, counts = entries[-1]
    axis.set_xscale("log")
    axis.set_xlim(10 ** edges[0], 1)
    axis.set_xticks([1e-6, 1e-4, 1e-2, 1])
    axis.set_ylim(0, 1.6 * max((counts / counts.sum()).max(), 0.05))  # the dense beginning would flatten the rest
    if k is not None and len(k[1]):
        width = counts.sum()
        fair = k[1][np.searchsorted(k[0], step, side="right") - 1] / width
        axis.axvline(fair, color=ORANGE, linewidth=1.2, linestyle="--")
        axis.text(
            fair * 0.85,
            0.97,
            "k / d",
            color=ORANGE,
            ha="right",
            va="top",
            transform=axis.get_xaxis_transform(),
            fontsize=9.5,
        )
    if counts[0]:
        axis.text(
            1.6e-6,
            0.97,
            f"silent: {counts[0] / counts.sum():.1%}",
            color=MUTED,
            va="top",
            transform=axis.get_xaxis_transform(),
            fontsize=9.5,
        )


def _time_bar(figure: Figure, axes: np.ndarray, most: float) -> None:
    unit, name = token_unit(most)
    scale = ScalarMappable(Normalize(0, most / unit), COLOURS)
    bar = figure.colorbar(scale, ax=axes, fraction=0.025, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label(f"{name} trained on")
