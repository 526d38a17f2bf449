"""Layers by time: a heat map per measure, a row per TopK site."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import STYLE, Series, labels_of, save, short, tokens_axis

MOST_COLUMNS = 400  # of a picture; longer runs show the mean of neighbouring steps
MOST_TICKS = 8
COLUMNS = 2
LEAST_SHARE = 0.01  # a scale of shares reaches so far, that a few dead neurons do not look like many


@dataclass(frozen=True)
class Map:
    """A heat map.

    Attributes:
        metric: the prefix of its metric. title: what it shows. less: a metric taken away from it, what chance gives.
        pattern: how the last value is written.
        share, zero, log: whether the scale is in per cent, begins at 0, is logarithmic.
    """

    metric: str
    title: str
    less: str | None = None
    pattern: str = "{:.2f}"
    share: bool = False
    zero: bool = False
    log: bool = False


MAPS = (
    Map("sparsity/dead_fraction", "Dead neurons", pattern="{:.1%}", share=True, zero=True),
    Map("sparsity/energy_kept", "Energy kept by TopK", pattern="{:.0%}", share=True),
    Map(
        "sparsity/overlap_layers",
        "Overlap with the next TopK layer, less chance",
        less="sparsity/overlap_layers_chance",
    ),
    Map("sparsity/overlap_tokens", "Overlap with the next token, less chance", less="sparsity/overlap_tokens_chance"),
    Map("neurons/effective_rank", "Effective rank", pattern="{:.1f}"),
    Map("neurons/token_entropy_median", "Token entropy in bits, median neuron"),
    Map(
        "neurons/topic_information_top",
        "Bits on the topic, top 10 neurons, less shuffled",
        less="neurons/topic_information_top_shuffled",
        pattern="{:.3f}",
    ),
    Map("train/grad_norm", "Norm of the gradient (log scale)", pattern="{:.2g}", log=True),
)


def draw_layers(series: Series, target: Path, tokens_per_step: int, title: str) -> bool:
    """Draws a heat map of each measure that has values into ``target`` (PNG). False where none has: nothing is
    drawn."""
    maps = [one for one in MAPS if _measured(series, one)]
    if not maps or not labels_of(series, "k"):
        return False
    rows = -(-len(maps) // COLUMNS)
    sites = len(labels_of(series, "k"))
    with plt.rc_context({**STYLE, "axes.grid": False}):
        height = 1.15 + min(3.4, 0.25 + 0.26 * sites)
        figure, axes = plt.subplots(
            rows, COLUMNS, figsize=(11.5, 0.5 + rows * height), layout="constrained", squeeze=False
        )
        figure.suptitle(
            f"{title}: layers over time (at the right: the last value)", x=0.01, ha="left", fontweight="bold"
        )
        for axis, one in zip(axes.flat, maps, strict=False):
            _heat(figure, axis, series, one, tokens_per_step)
        for axis in axes.flat[len(maps) :]:
            axis.set_axis_off()
        save(figure, target)
    return True


def _layers(series: Series, one: Map) -> list[str]:
    return [label for label in labels_of(series, one.metric) if label.startswith("layer_")]


def _measured(series: Series, one: Map) -> bool:
    return any(np.isfinite(series[f"{one.metric}/{label}"][1]).any() for label in _layers(series, one))


def _heat(figure: Figure, axis: Axes, series: Series, one: Map, tokens_per_step: int) -> None:
    labels = _layers(series, one)
    steps = np.unique(np.concatenate([series[f"{one.metric}/{label}"][0] for label in labels]))
    values = np.full((len(labels), len(steps)), np.nan)
    last = []
    for row, label in enumerate(labels):
        at, found = series[f"{one.metric}/{label}"]
        if one.less is not None:
            chance = dict(zip(*series.get(f"{one.less}/{label}", ((), ())), strict=True))
            found = found - np.array([chance.get(step, np.nan) for step in at])
        values[row, np.searchsorted(steps, at)] = found
        last.append(found[-1])
    steps, values = _thinned(steps, values)
    axis.set_title(one.title + _reference(series, one))
    unit = tokens_axis(axis, steps[-1] * tokens_per_step)
    image = axis.pcolormesh(
        _edges(steps) * tokens_per_step / unit,
        np.arange(len(labels) + 1) - 0.5,
        values,
        cmap="cividis",
        norm=_norm(values, one),
        rasterized=True,
    )
    axis.invert_yaxis()
    every = -(-len(labels) // MOST_TICKS)
    axis.set_yticks(range(0, len(labels), every), [short(label) for label in labels[::every]])
    axis.tick_params(axis="y", length=0)
    axis.spines[["left", "bottom"]].set_visible(False)
    for row in range(0, len(labels), every):
        text = one.pattern.format(last[row]) if np.isfinite(last[row]) else "-"
        axis.text(1.012, row, text, transform=axis.get_yaxis_transform(), va="center", ha="left", fontsize=9.5)
    bar = figure.colorbar(image, ax=axis, pad=0.085, fraction=0.045, aspect=12)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5)
    if not one.log:
        bar.locator = MaxNLocator(3)
        bar.formatter = PercentFormatter(1.0, decimals=None) if one.share else bar.formatter
        bar.update_ticks()


def _norm(values: np.ndarray, one: Map) -> Normalize:
    finite = values[np.isfinite(values)]
    if one.log and (finite > 0).any():
        return LogNorm(finite[finite > 0].min(), finite.max())
    if one.zero and len(finite):
        return Normalize(0, max(finite.max(), LEAST_SHARE))
    return Normalize(finite.min(), finite.max()) if len(finite) else Normalize(0, 1)


def _reference(series: Series, one: Map) -> str:
    """What stands beside the title: the entropy of the text, which no neuron passes by much."""
    if one.metric != "neurons/token_entropy_median" or "neurons/unigram_entropy" not in series:
        return ""
    last = series["neurons/unigram_entropy"][1][-1]
    return f" (text: {last:.2f})" if np.isfinite(last) else ""


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of so many neighbouring steps that no more than MOST_COLUMNS are left."""
    every = -(-len(steps) // MOST_COLUMNS)
    if every == 1:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), -(-len(steps) // every))
    masked = np.ma.masked_invalid(values)
    means = np.ma.stack([masked[:, part].mean(1) for part in parts], axis=1).filled(np.nan)
    return np.array([steps[part[-1]] for part in parts]), means


def _edges(steps: np.ndarray) -> np.ndarray:
    """Borders between columns: each column ends at its step, since what it shows was gathered before."""
    first = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else steps[0])
    return np.concatenate(([max(0, first)], steps)).astype(float)
