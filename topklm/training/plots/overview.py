"""The overview of a run: loss, k, energy kept and dead neurons over tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from .style import (
    BLUE,
    GREY,
    ORANGE,
    STYLE,
    Series,
    label_ends,
    labels_of,
    layer_colours,
    nothing,
    save,
    short,
    spread,
    tokens_axis,
)

LEAST_DEAD = 0.02  # the axis of dead neurons reaches so far, that a few do not look like many
MANY = 9  # sites: more are not named one by one


def draw_overview(series: Series, target: Path, tokens_per_step: int, title: str) -> None:
    """Draws the overview into ``target`` (PNG). Panels without data say so."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(11.5, 7), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        _losses(axes[0, 0], series, tokens_per_step)
        _per_layer(axes[0, 1], series, tokens_per_step, "sparsity/l0", "Neurons firing per token (l0)")
        _per_layer(axes[1, 0], series, tokens_per_step, "sparsity/energy_kept", "Energy kept by TopK", share=True)
        window = series.get("sparsity/dead_window_tokens")
        over = f" over {window[1][-1]:,.0f} tokens" if window else ""
        _per_layer(axes[1, 1], series, tokens_per_step, "sparsity/dead_fraction", f"Dead neurons{over}", share=True)
        save(figure, target)


def _losses(axis: Axes, series: Series, tokens_per_step: int) -> None:
    axis.set_title("Loss, nats per token")
    curves: list[tuple[str, str, str, dict[str, Any]]] = [
        ("train/loss", "training", GREY, {"linewidth": 0.9}),
        ("val/loss_final_k", "validation, at the final k", ORANGE, {"marker": "o", "markersize": 3.5}),
        ("val/loss", "validation", BLUE, {"marker": "o", "markersize": 3.5}),
    ]
    curves = [curve for curve in curves if curve[0] in series]
    if not curves:
        nothing(axis, "no loss was logged yet")
        return
    unit = tokens_axis(axis, max(series[name][0][-1] for name, *_ in curves) * tokens_per_step)
    for name, label, colour, style in curves:
        steps, values = series[name]
        axis.plot(steps * tokens_per_step / unit, values, color=colour, label=label, **style)
    axis.legend(frameon=False)


def _per_layer(axis: Axes, series: Series, tokens_per_step: int, prefix: str, title: str, share: bool = False) -> None:
    axis.set_title(title)
    labels = labels_of(series, prefix)
    if not labels:
        sites = labels_of(series, "k")
        nothing(axis, "nothing measured yet" if sites else "nothing measured: no TopK site")
        return
    unit = tokens_axis(axis, max(series[f"{prefix}/{label}"][0][-1] for label in labels) * tokens_per_step)
    ends = []
    for label, colour in zip(labels, layer_colours(len(labels)), strict=True):
        steps, values = series[f"{prefix}/{label}"]
        axis.plot(steps * tokens_per_step / unit, values, color=colour, linewidth=1.8)
        ends.append((float(values[-1]), short(label), colour))
    values = np.concatenate([series[f"{prefix}/{label}"][1] for label in labels])
    highest = max(values[np.isfinite(values)], default=0.0)
    if share:
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylim(0, 1.03 if prefix == "sparsity/energy_kept" else max(1.08 * highest, LEAST_DEAD))
    if len(ends) > MANY:
        ends = [ends[i] for i in spread(len(ends), 5)]
    label_ends(axis, ends)
