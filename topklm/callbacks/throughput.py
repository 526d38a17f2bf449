"""Logs how fast training goes: tokens per second, the share of time spent waiting for data, and MFU."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from ..model import count_flops
from .base import watched

WARMUP_STEPS = 5  # of each process, left out of the run's mean: compilation, caches, allocators
CHECKPOINT_KEY = "throughput"


class Throughput(L.Callback):
    """``throughput/tokens_per_second``, ``throughput/data_wait_percent`` and, where the device's peak is known,
    ``throughput/mfu``.

    Times cover the steps, the wait for their data and what callbacks do after each, but not validation and what follows
    it, nor checkpoints: the clock stops there, and goes on with the wait for the next batch. A GPU is waited for at
    logged steps and when the clock stops. The wait is read from the train loader's ``wait_seconds``.

    Args:
        peak_flops: dense peak of all devices together, in FLOP/s; None logs no MFU.

    Attributes:
        total_seconds, total_tokens: of the run so far, a resumed one's beginning included, without the first 5 steps of
            each process.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.total_seconds = 0.0
        self.total_tokens = 0
        self._seen = 0
        self._since: float | None = None  # when the clock was last read; None while it stands
        self._flops_per_token = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over the run so far; None before there is any."""
        return self.total_tokens / self.total_seconds if self.total_tokens else None

    @property
    def mfu(self) -> float | None:
        """The mean over the run so far; None before there is any, and where the peak is unknown."""
        rate = self.tokens_per_second
        return rate * self._flops_per_token / self.peak_flops if rate and self.peak_flops else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._flops_per_token = count_flops(watched(pl_module).model.config).training
        self._begin_interval(trainer)
        self._since = time.perf_counter()

    def _begin_interval(self, trainer: L.Trainer) -> None:
        self._seconds, self._tokens, self._waited_before = 0.0, 0, _waited(trainer)

    def _read_clock(self, pl_module: L.LightningModule, wait: bool) -> None:
        """Adds the time since the last reading to the interval and to the run."""
        assert self._since is not None
        if wait and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds += now - self._since
        if self._seen >= WARMUP_STEPS:
            self.total_seconds += now - self._since
        self._since = now

    def _stop_clock(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._since is None:
            return
        self._read_clock(pl_module, wait=True)
        self._since, self._waited_at_stop = None, _waited(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if self._since is None:
            self._since = time.perf_counter() - (_waited(trainer) - self._waited_at_stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        self._read_clock(pl_module, wait=module.is_log_step)
        self._seen += 1
        if self._seen <= WARMUP_STEPS:
            self._begin_interval(trainer)
            return
        self._tokens += module.tokens_per_step
        self.total_tokens += module.tokens_per_step
        if module.is_log_step:
            rate = self._tokens / self._seconds
            waited = _waited(trainer) - self._waited_before
            metrics = {
                "throughput/tokens_per_second": rate,
                "throughput/data_wait_percent": 100 * waited / self._seconds,
            }
            if self.peak_flops:
                metrics["throughput/mfu"] = rate * self._flops_per_token / self.peak_flops
            module.add_metrics(metrics)
            self._begin_interval(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._stop_clock(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._stop_clock(trainer, pl_module)
        checkpoint[CHECKPOINT_KEY] = {"seconds": self.total_seconds, "tokens": self.total_tokens}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if CHECKPOINT_KEY in checkpoint:
            self.total_seconds = checkpoint[CHECKPOINT_KEY]["seconds"]
            self.total_tokens = checkpoint[CHECKPOINT_KEY]["tokens"]


def _waited(trainer: L.Trainer) -> float:
    """Seconds spent waiting for the train loader so far."""
    loader: Any = trainer.train_dataloader
    return loader.wait_seconds
