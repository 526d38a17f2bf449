"""The pictures of a run, drawn from its ``metrics.csv`` and ``histograms.jsonl``, at its end or by
``scripts/plot_run.py`` at any time."""

from .run import draw_run, redraw

__all__ = ["draw_run", "redraw"]
