"""Logs dead neurons, those that fired on none of the last W training tokens, and how long ago neurons fired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from ..checks import is_whole
from ..model import TopKSite
from .base import Watched, histogram, reducer, require, require_whole, watched

FIELD_WINDOW = 10_000_000  # the usual window (Gao et al. 2024, arXiv 2406.04093)
UNITS = {10**9: "B", 10**6: "M", 10**3: "k"}
EDGES = np.linspace(0.0, 10.0, 41)  # of log10(tokens since a neuron fired); less than one counts as one
CHECKPOINT_KEY = "tokens_since_fired"


def default_window(run_tokens: int) -> int:
    """W for a run of so many tokens: the field's, or a tenth of a run shorter than two of these."""
    return FIELD_WINDOW if run_tokens >= 2 * FIELD_WINDOW else max(1, run_tokens // 10)


def tokens_since_fired(trainer: L.Trainer, site: TopKSite) -> Tensor:
    """Tokens of the whole run since each neuron fired on any rank, (d,); ranks see equal shares of the tokens. Every
    rank must call it."""
    since_d = site.tokens_since_fired_d
    since_d.copy_(reducer(trainer, "min")(since_d))
    return since_d * trainer.world_size


class DeadNeurons(L.Callback):
    """``sparsity/dead_fraction/LABEL`` and, beside them, ``sparsity/dead_window_tokens``: a share means nothing
    without its window. The same over windows that do not depend on the run's length, under names such as
    ``sparsity/dead_fraction_10M/LABEL``: they compare runs of different lengths.

    Nothing is logged for a window that has not passed once: until then no neuron can be called dead. From the first
    row on ``sparsity/tokens_since_fired_median/LABEL`` and ``_max`` say how long ago neurons fired, and at each
    validation a histogram, ``sparsity/tokens_since_fired_log10/LABEL``. Counts are exact to a micro-batch.

    Args:
        window_tokens: W. None takes 10,000,000, or a tenth of the run where that is shorter than two such windows.
        more_windows: the other windows, in tokens.
    """

    def __init__(
        self, window_tokens: int | None = None, more_windows: Sequence[int] = (1_000_000, FIELD_WINDOW)
    ) -> None:
        require_whole("dead_neurons.window_tokens", window_tokens, or_null=True)
        is_list = isinstance(more_windows, Sequence) and not isinstance(more_windows, str)
        require(
            is_list and all(is_whole(window) for window in more_windows) and len({*more_windows}) == len(more_windows),
            "dead_neurons.more_windows",
            more_windows,
            "a list of different whole numbers of 1 or more",
        )
        self.given = window_tokens
        self.window_tokens = window_tokens or FIELD_WINDOW
        self.more_windows = list(more_windows)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = watched(pl_module)
        if self.given is None:
            self.window_tokens = default_window(module.steps * module.tokens_per_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if not module.is_log_step or not _counts(module):
            return
        windows = {"": self.window_tokens, **{f"_{short(window)}": window for window in self.more_windows}}
        seen = module.global_step * module.tokens_per_step
        windows = {suffix: window for suffix, window in windows.items() if window <= seen}
        if "" in windows:
            module.add_metrics({"sparsity/dead_window_tokens": self.window_tokens})
        for site in module.model.sites:
            since_d = tokens_since_fired(trainer, site)
            for suffix, window in windows.items():
                dead = float((since_d >= window).float().mean())
                module.add_metrics({f"sparsity/dead_fraction{suffix}/{site.label}": dead})
            module.add_metrics(
                {
                    f"sparsity/tokens_since_fired_median/{site.label}": float(since_d.median()),
                    f"sparsity/tokens_since_fired_max/{site.label}": int(since_d.max()),
                }
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = watched(pl_module)
        if module.global_step == 0 or not _counts(module):  # before the first step nothing has been counted
            return
        for site in module.model.sites:
            since_d = tokens_since_fired(trainer, site).cpu().double()
            name = f"sparsity/tokens_since_fired_log10/{site.label}"
            module.add_histogram(name, *histogram(since_d.clamp_min(1).log10(), EDGES))

    # The state goes straight into the checkpoint: Lightning asks callbacks for their state_dict before it calls
    # on_save_checkpoint, and only the latter may talk to other ranks. It counts tokens of the whole run, where a site
    # counts its rank's, so that another number of ranks can go on with it.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            site.label: tokens_since_fired(trainer, site).cpu() for site in watched(pl_module).model.sites
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        for site in watched(pl_module).model.sites if CHECKPOINT_KEY in checkpoint else ():
            site.tokens_since_fired_d.copy_(checkpoint[CHECKPOINT_KEY][site.label] // trainer.world_size)


def _counts(module: Watched) -> bool:
    """Whether the model's sites count what fires."""
    return any(site.record for site in module.model.sites)


def short(tokens: int) -> str:
    """A number of tokens as it stands in names: 10M, 500k, 1234567."""
    for unit, letter in UNITS.items():
        if tokens % unit == 0:
            return f"{tokens // unit}{letter}"
    return str(tokens)
