"""Logs how large the gradient is, block by block."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from .base import Watched, gradient_norm, require_flag, watched


class GradientNorms(L.Callback):
    """``train/grad_norm/layer_03`` and the like: the norm of the gradient of a block's parameters, ``embedding`` and
    ``head`` beside them, before clipping. The norm of the last norm's gain is left out.

    It is that of the whole step: of all its micro-batches and, with several devices, of all ranks. Norms are computed
    in logged steps only, and wait for the device when they are logged.

    Args:
        enabled: log them at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        require_flag("gradients.enabled", enabled)
        self.enabled = enabled
        self._norms: dict[str, Tensor] = {}

    # When all micro-batches have added to the gradients and all ranks have exchanged them; the module clips after that.
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if self.enabled and module.is_logged(module.global_step + 1):
            self._norms = {name: _norm(part) for name, part in _parts(module).items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._norms:
            values = torch.stack(list(self._norms.values())).tolist()
            watched(pl_module).add_metrics(
                {f"train/grad_norm/{name}": value for name, value in zip(self._norms, values, strict=True)}
            )
            self._norms = {}


def _parts(module: Watched) -> dict[str, nn.Module]:
    model = module.model
    blocks = {f"layer_{layer:02d}": block for layer, block in enumerate(model.blocks)}
    return {**blocks, "embedding": model.embed, **({} if model.config.tied else {"head": model.head})}


def _norm(part: nn.Module) -> Tensor:
    return gradient_norm(part.parameters())
