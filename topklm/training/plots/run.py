"""The pictures of a run directory: what is read, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from ...errors import UserError
from ..metrics_file import read_metrics
from .firing import Histograms, draw_firing_rates
from .layers import draw_layers
from .overview import draw_overview


def draw_run(folder: Path, tokens_per_step: int, target: Path) -> list[Path]:
    """Draws ``sparsity.png`` (the overview), and of a run with TopK ``layers.png`` and ``firing_rates.png``, into the
    folder ``target``.

    Args:
        folder: a run directory with a ``metrics.csv``.

    Returns:
        The pictures, the overview first.
    """
    series, histograms = read_metrics(folder / "metrics.csv"), read_histograms(folder / "histograms.jsonl")
    title = folder.resolve().name
    overview, layers, firing = (target / f"{name}.png" for name in ("sparsity", "layers", "firing_rates"))
    draw_overview(series, overview, tokens_per_step, title)
    drawn = [overview]
    if draw_layers(series, layers, tokens_per_step, title):
        drawn.append(layers)
    if draw_firing_rates(histograms, series, firing, tokens_per_step, title):
        drawn.append(firing)
    return drawn


def redraw(run: str | Path | None) -> list[Path]:
    """Draws the pictures of a run, finished or not, into its ``plots/`` anew.

    Raises:
        UserError: ``run`` is no run directory, nothing was logged in it yet, or what is there cannot be read.
    """
    if run is None:
        raise UserError("run=DIR is missing: give the directory of a run.")
    folder = Path(run)
    try:
        tokens_per_step = OmegaConf.load(folder / "config.yaml").training.batch_tokens
        assert isinstance(tokens_per_step, int)
    except FileNotFoundError as error:
        raise UserError(
            f"run={run}: there is no run in {run} (no config.yaml): give the directory of a run."
        ) from error
    except Exception as error:
        raise UserError(
            f"{folder / 'config.yaml'} is not the config of a run: put the run's own in its place."
        ) from error
    metrics = folder / "metrics.csv"
    try:
        empty = not metrics.exists() or not read_metrics(metrics)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{metrics} is damaged ({error}): remove what is no row of numbers.") from error
    if empty:
        raise UserError(f"run={run} has logged nothing yet (no row in metrics.csv): wait for its first logged step.")
    return draw_run(folder, tokens_per_step, folder / "plots")


def read_histograms(path: Path) -> Histograms:
    """Reads a ``histograms.jsonl``: for every name its histograms in order, nothing where there is no file. A last line
    that is being written is passed over."""
    found: Histograms = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        found.setdefault(entry["name"], []).append((entry["step"], np.array(entry["edges"]), np.array(entry["counts"])))
    return found
