"""Stops a run whose loss or gradient is no longer finite, before a checkpoint of it is written."""

from __future__ import annotations

from typing import Any

import lightning as L

from .base import watched


class NonFiniteLoss(ArithmeticError):
    """The loss or the gradient became NaN or infinite; the message says at which step."""


class NonFinite(L.Callback):
    """Raises NonFiniteLoss at a step whose loss or gradient norm is not finite.

    Args:
        every_n_steps: how often to look; each look waits for the device. Checkpoints must fall on such steps.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if pl_module.device.type != "cpu" and module.global_step % self.every_n_steps and not trainer.should_stop:
            return
        for name, value in (("loss", module.loss), ("gradient norm", module.grad_norm)):
            if not bool(value.isfinite()):
                raise NonFiniteLoss(f"The {name} became {value.item()} at step {module.global_step}")
