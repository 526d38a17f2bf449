"""The picture of a run: losses and sparsity curves over tokens, drawn from ``metrics.csv``."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .loggers import read_metrics

Series = dict[str, tuple[np.ndarray, np.ndarray]]


def plot_run(metrics: Path, target: Path, tokens_per_step: int, title: str) -> None:
    """Draws losses, k and l0, energy kept and dead neurons per site into ``target`` (PNG). Panels without data say
    so."""
    series = read_metrics(metrics)
    millions = tokens_per_step / 1e6
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    _losses(axes[0, 0], series, millions)
    _per_layer(axes[0, 1], series, millions, "sparsity/l0/", "l0: neurons firing per token")
    _per_layer(axes[1, 0], series, millions, "sparsity/energy_kept/", "share of energy kept by TopK")
    window = series.get("sparsity/dead_window_tokens")
    over = f" (over the last {window[1][-1]:,.0f} tokens)" if window else ""
    _per_layer(axes[1, 1], series, millions, "sparsity/dead_fraction/", f"share of dead neurons{over}")
    for axis in axes.flat:
        axis.set_xlabel("million tokens")
        axis.grid(alpha=0.3)
    axes[1, 0].set_ylim(0, 1.05)
    axes[1, 1].set_ylim(bottom=0)
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def _losses(axis: Axes, series: Series, millions: float) -> None:
    for name, label, style in (
        ("train/loss", "training, k in force", {"alpha": 0.5, "linewidth": 0.8}),
        ("val/loss_final_k", "validation, final k", {"marker": "o", "markersize": 3}),
        ("val/loss", "validation, k in force", {"marker": "o", "markersize": 3}),
    ):
        if name in series:
            steps, values = series[name]
            axis.plot(steps * millions, values, label=label, **style)
    axis.set_title("loss, nats per token")
    axis.legend()


def _per_layer(axis: Axes, series: Series, millions: float, prefix: str, title: str) -> None:
    found = sorted(name for name in series if name.startswith(prefix))
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, max(1, len(found))))
    for colour, name in zip(colours, found, strict=False):
        steps, values = series[name]
        axis.plot(steps * millions, values, color=colour, label=name.removeprefix(prefix))
    axis.set_title(title)
    if not found:
        axis.text(0.5, 0.5, "nothing measured: no TopK site", ha="center", va="center", transform=axis.transAxes)
    elif len(found) <= 12:
        axis.legend()
