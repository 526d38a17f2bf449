"""Stops a run whose loss, gradient or weights are no longer finite, before a checkpoint of it is written."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from .base import require_whole, validation_follows, watched


class NonFiniteLoss(ArithmeticError):
    """The loss, the gradient or the weights became NaN or infinite; the message says at which step."""


class NonFinite(L.Callback):
    """Raises NonFiniteLoss at a step whose loss or gradient norm is not finite, and in the place of a checkpoint whose
    weights are not.

    Args:
        every_n_steps: how often to look at loss and gradient, as a look waits for the device; on a CPU, which does not
            wait, every step is looked at, as is one after which the run is validated. The weights are looked at before
            every checkpoint.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        require_whole("non_finite.every_n_steps", every_n_steps)
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        looks = pl_module.device.type == "cpu" or module.global_step % self.every_n_steps == 0
        if not (looks or trainer.should_stop or validation_follows(trainer, pl_module)):
            return
        for name, value in (("loss", module.loss), ("gradient norm", module.grad_norm)):
            if not bool(value.isfinite()):
                raise NonFiniteLoss(f"The {name} became {value.item()} at step {module.global_step}")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        module = watched(pl_module)
        finite = torch.stack([parameter.isfinite().all() for parameter in module.model.parameters()])
        if not bool(finite.all()):
            raise NonFiniteLoss(f"Weights became infinite or NaN at step {module.global_step}")
