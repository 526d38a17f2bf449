"""Keeps Python's garbage collector out of training steps."""

from __future__ import annotations

import gc
from typing import Any

import lightning as L

NEVER = 2**30  # collections of the middle generation before one of the oldest


class Garbage(L.Callback):
    """After the first step of a process, all that exists by then (libraries, compiled code, the optimizer's state) is
    taken out of the collector's sight, and full collections wait for validations: each would look at millions of
    objects, at a moment of its own choosing, while a device runs dry or other ranks wait. When training ends, the
    collector is as it was.

    A collector that somebody has switched off stays off.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int, int] | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._before is None and gc.isenabled():
            self._before = gc.get_threshold()
            gc.collect()
            gc.freeze()
            gc.set_threshold(*self._before[:2], NEVER)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._before is not None:
            gc.collect()

    def _restore(self) -> None:
        if self._before is not None:
            gc.set_threshold(*self._before)
            gc.unfreeze()
            self._before = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()
