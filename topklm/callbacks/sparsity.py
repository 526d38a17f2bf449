"""Logs what TopK keeps: k, l0, energy kept, threshold and firing rates of every site."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from .base import histogram, reducer, require_flag, watched

EDGES = np.linspace(-6.0, 0.0, 25)  # of log10(firing rate); rarer than one in a million counts as 1e-6
CHECKPOINT_KEY = "sparsity_interval"


class Sparsity(L.Callback):
    """Means over the steps since the last logged row, per site:

    ``k/LABEL``, ``sparsity/l0/LABEL``, ``sparsity/energy_kept/LABEL``, ``sparsity/threshold/LABEL``, and at each
    validation a histogram over neurons, ``sparsity/firing_rate_log10/LABEL``. LABEL is ``layer_03`` at the residual
    stream, ``layer_03_mlp_neurons`` and so on elsewhere.

    Args:
        enabled: count at all; False makes the model skip the counting, and logs k alone.
    """

    def __init__(self, enabled: bool = True) -> None:
        require_flag("sparsity.enabled", enabled)
        self.enabled = enabled
        self.firing_rates: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for site in watched(pl_module).model.sites:
            site.record = self.enabled

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if not module.is_log_step:
            return
        for site in module.model.sites:
            module.add_metrics({f"k/{site.label}": int(site.k)})
            interval = site.interval(reducer(trainer, "sum"))
            if interval is None:
                continue
            self.firing_rates[site.label] = interval.firing_rate_d
            module.add_metrics(
                {
                    f"sparsity/l0/{site.label}": interval.l0,
                    f"sparsity/energy_kept/{site.label}": interval.energy_kept,
                    f"sparsity/threshold/{site.label}": interval.threshold,
                }
            )
            site.reset_interval()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for label, rate_d in self.firing_rates.items():
            name = f"sparsity/firing_rate_log10/{label}"
            watched(pl_module).add_histogram(name, *histogram(rate_d.clamp_min(1e-6).log10(), EDGES))

    # Straight into the checkpoint, and not by state_dict: see DeadNeurons.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        reduce = reducer(trainer, "sum")
        counters = {
            site.label: {name: reduce(counter).cpu() for name, counter in site.interval_counters().items()}
            for site in watched(pl_module).model.sites
        }
        checkpoint[CHECKPOINT_KEY] = {"counters": counters, "firing_rates": self.firing_rates}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT_KEY not in checkpoint:
            return
        self.firing_rates = checkpoint[CHECKPOINT_KEY]["firing_rates"]
        if trainer.global_rank == 0:  # the sums are over all ranks: one goes on with them, the others begin at zero
            for site in watched(pl_module).model.sites:
                site.load_interval(checkpoint[CHECKPOINT_KEY]["counters"][site.label])
