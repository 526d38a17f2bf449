"""Revives dead neurons by drawing their weights anew."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from ..model import TopKSite
from ..model.neurons import NeuronWeights, readers, writers
from .base import Watched, is_number, require, require_flag, require_whole, watched
from .dead_neurons import default_window, tokens_since_fired


class Revive(L.Callback):
    """At intervals, draws anew what writes a silent neuron, and silences what reads it, as in ReDo (Sokar et al. 2023,
    arXiv 2302.12902).

    A silent neuron is one that fired on none of the last ``window_tokens`` tokens, at one site: of the shared
    coordinates of a residual stream, those alive at another layer keep what they are there. Each of the neuron's rows
    in the matrices that write it becomes a random direction as long as those of the site's living neurons are in the
    mean, times ``write_scale``, so that it takes part in the selection again. What reads it right after the site gets
    length ``read_scale``; with 0 this matrix reads nothing of it at first, and the gradient finds a use for it. On the
    MLP's neurons nothing else reads it; on the residual stream the value stays, and later matrices and the divisors of
    the norms take it in at once. In either case it displaces what would have been kept in its place. The optimizer
    forgets the gradients of these entries. See ``model/neurons.py`` for which weights these are. Random numbers come
    from a generator of their own, the same on every rank.

    Logs ``sparsity/revived/LABEL``, the number of neurons drawn anew, at each interval.

    Args:
        enabled: revive at all. every_n_steps: the interval. window_tokens: None takes ``default_window``.
        write_scale, read_scale: as above. until: share of training after which nothing is drawn.
        seed: of the random numbers.
    """

    def __init__(
        self,
        enabled: bool = True,
        every_n_steps: int = 50,
        window_tokens: int | None = None,
        write_scale: float = 1.5,
        read_scale: float = 0.0,
        until: float = 0.8,
        seed: int = 0,
    ) -> None:
        require_flag("revive.enabled", enabled)
        require_whole("revive.every_n_steps", every_n_steps)
        require_whole("revive.window_tokens", window_tokens, or_null=True)
        for name, value in (("write_scale", write_scale), ("read_scale", read_scale)):
            require(is_number(value, 0), f"revive.{name}", value, "a number of 0 or more")
        require(is_number(until, 0, 1), "revive.until", until, "a share of training from 0 to 1")
        require_whole("revive.seed", seed, 0)
        self.enabled, self.every_n_steps, self.until, self.seed = enabled, every_n_steps, until, seed
        self.given_window = window_tokens
        self.write_scale, self.read_scale = write_scale, read_scale

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = watched(pl_module)
        self.window_tokens = self.given_window or default_window(module.steps * module.tokens_per_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        step = module.global_step
        if not self.enabled or step % self.every_n_steps or step > self.until * module.steps:
            return
        for number, site in enumerate(module.model.sites):
            silent_d = tokens_since_fired(trainer, site) >= self.window_tokens
            generator = torch.Generator().manual_seed((self.seed * 10**6 + step) * 10**3 + number)
            self._draw_anew(module, site, silent_d, generator)
            module.add_metrics({f"sparsity/revived/{site.label}": int(silent_d.sum())})

    def _draw_anew(self, module: Watched, site: TopKSite, silent_d: torch.Tensor, generator: torch.Generator) -> None:
        if not silent_d.any():
            return
        for scale, matrices in (
            (self.write_scale, writers(module.model, site)),
            (self.read_scale, readers(module.model, site)),
        ):
            for weights in matrices:
                fill(weights, silent_d, scale, generator)
                forgotten = torch.zeros_like(weights.parameter, dtype=torch.bool)
                weights.rows(forgotten)[silent_d] = True
                module.forget_gradients(weights.parameter, forgotten)


@torch.no_grad()
def fill(weights: NeuronWeights, chosen_d: torch.Tensor, scale: float, generator: torch.Generator) -> None:
    """Gives the chosen neurons random rows, each as long as the others' in the mean, times ``scale``.

    Args:
        chosen_d: (d,) bool. generator: on the CPU, so that every device draws the same.
    """
    rows_dm = weights.rows(weights.parameter.data)
    length_d = rows_dm.float().norm(dim=1)
    length = (length_d if chosen_d.all() else length_d[~chosen_d]).mean()
    fresh = torch.randn(int(chosen_d.sum()), rows_dm.shape[1], generator=generator)
    fresh = (fresh / fresh.norm(dim=1, keepdim=True)).to(rows_dm.device) * (length * scale)
    rows_dm[chosen_d] = fresh.to(rows_dm.dtype)
