"""The telemetry of a run without the run, for timing what it costs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..callbacks import DeadNeurons, GradientNorms, Sparsity
from ..callbacks.base import Watched
from ..model import TopKTransformer
from ..training.config import RunConfig
from ..training.loggers import CSVLog


class Telemetry(Watched):
    """The callbacks that log a row to a ``metrics.csv`` once in ``log_every`` steps, and in the place of module and
    trainer what they ask of them. Dead neurons are logged in each row, though a run logs none in its first tokens.

    Args:
        log_every: None takes the run's.
    """

    world_size, global_rank, eot_id = 1, 0, None
    loss = grad_norm = torch.zeros(())

    def __init__(self, model: TopKTransformer, config: RunConfig, log_every: int | None = None) -> None:
        self.model, self.steps = model, config.training.steps
        self.tokens_per_step, self.log_every = config.training.batch_tokens, log_every or config.training.log_every
        self.taken = 0
        self.row, self.latest = {}, {}
        self.folder = tempfile.TemporaryDirectory()  # goes with this object
        self.log = CSVLog(Path(self.folder.name) / "metrics.csv")
        self.callbacks = (Sparsity(), DeadNeurons(window_tokens=1), GradientNorms())
        self.tell("on_train_start")

    @property
    def global_step(self) -> int:
        return self.taken

    @property
    def is_log_step(self) -> bool:
        return self.is_logged(self.taken)

    def is_logged(self, step: int) -> bool:
        return step % self.log_every == 0

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        self.row.update(metrics)

    def add_histogram(self, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        raise AssertionError("histograms belong to validation, which is not timed")

    def forget_gradients(self, parameter: Tensor, where: Tensor) -> None:
        raise AssertionError("nothing is drawn anew in a benchmark")

    def log_row(self) -> None:
        if self.row:
            self.log.log_metrics(self.row, step=self.taken)
            self.row = {}

    def step(self) -> None:
        """What follows a step."""
        self.taken += 1
        self.tell("on_train_batch_end")
        self.log_row()

    def tell(self, hook: str, *args: Any) -> None:
        stand_in: Any = self
        for callback in self.callbacks:
            getattr(callback, hook)(stand_in, stand_in, *args)
