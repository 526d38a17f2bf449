"""What callbacks may ask of the module they watch. They see the model through its public telemetry, and nothing of how
it is trained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from ..checks import is_whole
from ..model import TopKTransformer


class Watched(Protocol):
    """The part of the LightningModule that callbacks use.

    Attributes:
        model: the transformer. steps, tokens_per_step: length of the run, size of a step. global_step: steps taken.
        eot_id: the token at which attention begins anew, None where it crosses documents.
        is_log_step: whether the present step's metrics are logged. loss, grad_norm: of the last step, 0-d tensors.
        row, latest: metrics of the present step so far, and the last value of every metric.
    """

    model: TopKTransformer
    steps: int
    tokens_per_step: int
    eot_id: int | None
    loss: Tensor
    grad_norm: Tensor
    row: dict[str, float]
    latest: dict[str, float]

    @property
    def global_step(self) -> int: ...

    @property
    def is_log_step(self) -> bool: ...

    def is_logged(self, step: int) -> bool:
        """Whether the metrics of ``step`` are logged."""

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds to the row logged for the present step."""

    def add_histogram(self, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """Logs a histogram for the present step."""

    def log_row(self) -> None:
        """Logs the row now."""

    def forget_gradients(self, parameter: Tensor, where: Tensor) -> None:
        """Zeroes what the optimizer remembers of the gradients of ``parameter``, at the entries in ``where``."""


def require(ok: bool, setting: str, value: object, wanted: str) -> None:
    """Raises ValueError for a value that will not do; ``setting`` is the override to change, without ``callbacks.``."""
    if not ok:
        raise ValueError(f"callbacks.{setting}={value}: give {wanted}.")


def is_number(value: object, least: float, most: float = sys.float_info.max) -> bool:
    """Whether it is a finite number from ``least`` to ``most``; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most


def require_flag(setting: str, value: object) -> None:
    """``require`` for True or False."""
    require(isinstance(value, bool), setting, value, "true or false")


def require_whole(setting: str, value: object, least: int = 1, or_null: bool = False) -> None:
    """``require`` for a whole number of at least ``least``, or None if that will do."""
    ok = is_whole(value, least) or (or_null and value is None)
    require(ok, setting, value, f"a whole number of {least} or more{', or null' if or_null else ''}")


def gradient_norm(parameters: Iterable[Parameter]) -> Tensor:
    """The norm of the parameters' gradients together, 0-d float32, also where they are bfloat16. Waits for nothing."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if any(grad.dtype == torch.bfloat16 for grad in grads):
        grads = [torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads]
    return torch.nn.utils.get_total_norm(grads)


def histogram(values: Tensor, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the values between ``edges``, and the edges. What lies outside counts in the outermost bins; NaN, what
    was not measured, is left out."""
    known = values[~values.isnan()].cpu().numpy()
    return np.histogram(known.clip(edges[0], edges[-1]), edges)


def watched(pl_module: L.LightningModule) -> Watched:
    return cast(Watched, pl_module)


def reducer(trainer: L.Trainer, op: str) -> Callable[[Tensor], Tensor]:
    """A function that reduces a tensor over ranks (``sum``, ``min``); every rank must call it. The identity on one
    device."""
    if trainer.world_size == 1:
        return lambda tensor: tensor
    return lambda tensor: cast(Tensor, trainer.strategy.reduce(tensor.clone(), reduce_op=op))


def validation_follows(trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
    """Whether the step just done is one after which the run is validated."""
    return pl_module.global_step % int(trainer.val_check_interval or 1) == 0
