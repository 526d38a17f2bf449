"""Logs the share of dead neurons: those that fired on none of the last W training tokens."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from .base import is_whole, reducer, require, watched

FIELD_WINDOW = 10_000_000  # the usual window (Gao et al. 2024, arXiv 2406.04093)
CHECKPOINT_KEY = "tokens_since_fired"


class DeadNeurons(L.Callback):
    """``sparsity/dead_fraction/LABEL`` and, beside them, ``sparsity/dead_window_tokens``: a share means nothing
    without its window.

    Nothing is logged before the window has passed once: until then no neuron can be called dead.

    Args:
        window_tokens: W. None takes 10,000,000, or a tenth of the run where that is shorter than two such windows.
    """

    def __init__(self, window_tokens: int | None = None) -> None:
        require(
            window_tokens is None or is_whole(window_tokens),
            "dead_neurons.window_tokens",
            window_tokens,
            "a whole number of 1 or more, or null",
        )
        self.given = window_tokens
        self.window_tokens = window_tokens or FIELD_WINDOW
        self.since_fired: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = watched(pl_module)
        run_tokens = module.steps * module.tokens_per_step
        if self.given is None and run_tokens < 2 * FIELD_WINDOW:
            self.window_tokens = max(1, run_tokens // 10)
        for site in module.model.sites:
            if site.label in self.since_fired:
                site.tokens_since_fired_d.copy_(self.since_fired[site.label] // trainer.world_size)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if not module.is_log_step or not any(site.record for site in module.model.sites):
            return
        if module.global_step * module.tokens_per_step < self.window_tokens:
            return
        module.add_metrics({"sparsity/dead_window_tokens": self.window_tokens})
        for site in module.model.sites:
            since_d = self._reduce(trainer, site.tokens_since_fired_d)
            module.add_metrics(
                {f"sparsity/dead_fraction/{site.label}": float((since_d >= self.window_tokens).float().mean())}
            )

    def _reduce(self, trainer: L.Trainer, since_d: Tensor) -> Tensor:
        """Tokens of the whole run since each neuron fired on any rank; ranks see equal shares of the tokens."""
        since_d.copy_(reducer(trainer, "min")(since_d))
        return since_d * trainer.world_size

    # The state goes straight into the checkpoint: Lightning asks callbacks for their state_dict before it calls
    # on_save_checkpoint, and only the latter may talk to other ranks. It counts tokens of the whole run, where a site
    # counts its rank's, so that another number of ranks can go on with it.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {
            site.label: self._reduce(trainer, site.tokens_since_fired_d).cpu()
            for site in watched(pl_module).model.sites
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.since_fired = checkpoint.get(CHECKPOINT_KEY, {})
