"""Brings long silent neurons back into the selection by a bias that fades before training ends."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from ..model import TopKSite
from .base import Watched, is_number, reducer, require, require_flag, require_whole, watched
from .dead_neurons import default_window, tokens_since_fired

CHECKPOINT_KEY = "selection_bias"


class SelectionBias(L.Callback):
    """Training chooses by value plus bias and passes the value as it is; validation, samples and the finished model
    know no bias.

    Every ``every_n_steps`` steps, the bias of a neuron that fired on none of the last ``window_tokens`` tokens grows by
    ``rate`` times the size of the site's mean threshold, and that of any other shrinks by the factor ``decay``. So it
    grows until the neuron fires, whose gradient then teaches it when to. The idea is that of balancing experts without
    a loss (DeepSeek-V3, arXiv 2408.15664). From ``fade_from`` to ``until``, shares of training, all biases fade to
    zero. A bias comes from steps that are over, never from other tokens of its own batch, and is the same on every
    rank.

    Logs ``sparsity/bias/LABEL``, the largest bias in force.

    Args:
        enabled: bias at all. every_n_steps, window_tokens (None takes ``default_window``), rate, decay, fade_from,
            until: as above.
    """

    def __init__(
        self,
        enabled: bool = True,
        every_n_steps: int = 10,
        window_tokens: int | None = None,
        rate: float = 0.1,
        decay: float = 0.9,
        fade_from: float = 0.6,
        until: float = 0.8,
    ) -> None:
        require_flag("selection_bias.enabled", enabled)
        require_whole("selection_bias.every_n_steps", every_n_steps)
        require_whole("selection_bias.window_tokens", window_tokens, or_null=True)
        require(is_number(rate, 0), "selection_bias.rate", rate, "a number of 0 or more")
        require(is_number(decay, 0, 1), "selection_bias.decay", decay, "a factor from 0 to 1")
        require(is_number(until, 0, 1), "selection_bias.until", until, "a share of training from 0 to 1")
        fade_ok = is_number(fade_from, 0, until)
        require(fade_ok, "selection_bias.fade_from", fade_from, f"a share of training from 0 to until={until}")
        self.enabled, self.every_n_steps, self.given_window = enabled, every_n_steps, window_tokens
        self.rate, self.decay, self.fade_from, self.until = rate, decay, fade_from, until
        self.bias: dict[str, Tensor] = {}  # before fading, by label

    def fading(self, progress: float) -> float:
        """The factor on every bias at ``progress`` (0 to 1): 1, then down to 0, which it reaches at ``until``."""
        if progress >= self.until:
            return 0.0
        return 1.0 if progress <= self.fade_from else (self.until - progress) / (self.until - self.fade_from)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = watched(pl_module)
        self.window_tokens = self.given_window or default_window(module.steps * module.tokens_per_step)
        if not self.enabled:
            return
        for site in module.model.sites:
            site.biased = True
            before = self.bias.get(site.label, torch.zeros(site.width))
            self.bias[site.label] = before.to(site.bias_d.device)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not self.enabled:
            return
        module = watched(pl_module)
        steps_done = module.global_step
        factor = self.fading((steps_done + 1) / module.steps)
        for site in module.model.sites:
            bias_d = self.bias[site.label]
            if steps_done and steps_done % self.every_n_steps == 0 and factor > 0:
                silent_d = tokens_since_fired(trainer, site) >= self.window_tokens
                unit = self._threshold(trainer, module, site).abs()
                bias_d.copy_(torch.where(silent_d, bias_d + self.rate * unit, bias_d * self.decay))
            site.bias_d.copy_(bias_d * factor)

    def _threshold(self, trainer: L.Trainer, module: Watched, site: TopKSite) -> Tensor:
        """Mean over the steps since the last logged row, or of that row where it is of the step just taken. Stays on
        the device, so that nobody waits for it."""
        if module.is_log_step:
            return torch.tensor(module.latest[f"sparsity/threshold/{site.label}"])
        return site.mean_threshold(reducer(trainer, "sum"))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if self.enabled and module.is_log_step:
            for site in module.model.sites:
                module.add_metrics({f"sparsity/bias/{site.label}": float(site.bias_d.max())})

    # Straight into the checkpoint, beside the counters it is made from.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.enabled:
            checkpoint[CHECKPOINT_KEY] = {label: bias_d.cpu() for label, bias_d in self.bias.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.bias = dict(checkpoint.get(CHECKPOINT_KEY, {}))
