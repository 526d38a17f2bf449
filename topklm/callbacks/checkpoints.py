"""Saves checkpoints: ``last.ckpt`` often, and a few kept ones spread over the run, to trace neurons through
training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from .base import require_whole, validation_follows, watched


class Checkpoints(L.Callback):
    """Writes ``checkpoints/last.ckpt`` every so many steps, and ``checkpoints/step_0000500.ckpt`` and the like at
    equal distances.

    A checkpoint of a step is written when all that belongs to the step is done and logged, its validation included: a
    run that continues from it does not do any of it twice. It must be the last of the callbacks.

    Args:
        every_n_steps: between writes of ``last.ckpt``, which is also written after the last step and when the run is
            told to stop.
        keep: how many checkpoints to keep, the final one included; 0 keeps ``last.ckpt`` alone.
    """

    def __init__(self, every_n_steps: int = 100, keep: int = 5) -> None:
        require_whole("checkpoints.every_n_steps", every_n_steps)
        require_whole("checkpoints.keep", keep, 0)
        self.every_n_steps, self.keep = every_n_steps, keep

    def _kept_steps(self, steps: int) -> set[int]:
        return {round(steps * part / self.keep) for part in range(1, self.keep + 1)}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not validation_follows(trainer, pl_module):
            self._save_if_due(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_if_due(trainer, pl_module)

    def _save_if_due(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, step = watched(pl_module), pl_module.global_step
        module.log_row()
        folder = Path(trainer.default_root_dir) / "checkpoints"
        keep = step in self._kept_steps(module.steps)
        due = step % self.every_n_steps == 0 or step == module.steps or trainer.should_stop
        if keep or due:
            for logger in trainer.loggers:
                logger.save()  # a run that continues from here does not log the step again
        if keep:
            trainer.save_checkpoint(folder / f"step_{step:07d}.ckpt")
        if due:
            trainer.save_checkpoint(folder / "last.ckpt")
