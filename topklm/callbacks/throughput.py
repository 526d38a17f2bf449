"""Logs how fast training goes: tokens per second, the share of time spent waiting for data, and MFU."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from ..model import flops_per_token
from .base import watched

WARMUP_STEPS = 5  # left out of the run's mean: compilation, caches, allocators


class Throughput(L.Callback):
    """``throughput/tokens_per_second``, ``throughput/data_wait_percent`` and, where the device's peak is known,
    ``throughput/mfu``.

    Times cover the steps, the wait for their data and what callbacks do after them, but not validation. A GPU is
    waited for at logged steps only. The wait is read from the train loader's ``wait_seconds``.

    Args:
        peak_flops: dense peak of all devices together, in FLOP/s; None logs no MFU.

    Attributes:
        tokens_per_second, mfu: means over the run so far, without its first 5 steps; None before there are any.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.tokens_per_second: float | None = None
        self.mfu: float | None = None
        self._total_seconds = 0.0
        self._total_tokens = 0
        self._seen = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._flops_per_token = flops_per_token(watched(pl_module).model)
        self._reset(trainer)
        self._ended = time.perf_counter()

    def _reset(self, trainer: L.Trainer) -> None:
        self._seconds = 0.0
        self._tokens = 0
        self._waited_before = _waited(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if module.is_log_step and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds += now - self._ended
        self._tokens += module.tokens_per_step
        self._seen += 1
        if self._seen <= WARMUP_STEPS:
            self._reset(trainer)
        elif module.is_log_step:
            rate = self._tokens / self._seconds
            self._total_seconds += self._seconds
            self._total_tokens += self._tokens
            self.tokens_per_second = self._total_tokens / self._total_seconds
            waited = _waited(trainer) - self._waited_before
            metrics = {
                "throughput/tokens_per_second": rate,
                "throughput/data_wait_percent": 100 * waited / self._seconds,
            }
            if self.peak_flops:
                metrics["throughput/mfu"] = rate * self._flops_per_token / self.peak_flops
                self.mfu = self.tokens_per_second * self._flops_per_token / self.peak_flops
            module.add_metrics(metrics)
            self._reset(trainer)
        self._ended = now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = time.perf_counter()


def _waited(trainer: L.Trainer) -> float:
    """Seconds spent waiting for the train loader so far."""
    loader: Any = trainer.train_dataloader
    return loader.wait_seconds
