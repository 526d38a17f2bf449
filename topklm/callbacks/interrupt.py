"""Ctrl-C and SIGTERM end a run at a step's end, with a checkpoint, instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import lightning as L

from .base import validation_follows, watched

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(L.Callback):
    """On the first signal, asks the trainer to stop after the step at hand, with several devices after the next logged
    one; a second one has its ordinary effect.

    Attributes:
        received: the signal that stopped the run, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals

        def handle(number: int, frame: FrameType | None) -> None:
            self.received = signal.Signals(number)
            self._restore()

        for number in SIGNALS:
            self._before[number] = signal.getsignal(number)
            signal.signal(number, handle)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        stop = self.received is not None
        if trainer.world_size > 1:
            # A signal may reach one rank alone, but all must stop at the same step. They ask each other at logged
            # steps, as whoever asks waits for the device.
            if not watched(pl_module).is_log_step:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and pl_module.global_step < watched(pl_module).steps:  # after the last step it ends by itself
            trainer.should_stop = True
            if not validation_follows(trainer, pl_module):
                trainer.limit_val_batches = 0  # Lightning validates a run that stops, as if it were at its end

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()
