"""The LightningModule: one training step is one optimizer step, read top to bottom.

Optimization is manual, so that a batch of the loader is a step of the run: its share of the global batch is split into
micro-batches here. Step counts, schedules and data positions then mean the same on any number of devices.
Shapes: b batch (windows), l window length, one more than the number of targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from .. import __version__
from ..callbacks.base import gradient_norm
from ..model import TopKTransformer, document_numbers
from ..model.config import ModelConfig
from ..schedules import KSchedule, Trapezoid
from .loggers import log_histogram
from .optim import build_optimizer, forget
from .sections import OptimizerConfig


class TopKLM(L.LightningModule):
    """Trains a TopKTransformer while k moves by its schedule.

    Args:
        model_config: the model. optimizer_config: its optimizer.
        steps: length of the run, of which both schedules are functions. tokens_per_step: over all devices.
        log_every: steps between logged rows.
        k_schedule: how k moves.
        lr_schedule: factor on the peak learning rate.
        micro_windows: windows per forward pass. clip_grad_norm: largest norm of the gradient, None for any.
        z_loss: factor on the mean squared log-partition, which training adds to the loss.
        byte_lengths: (v,) int64, UTF-8 bytes each token stands for, which bits per byte need.
        eot_id: the token at which attention and positions begin anew; None lets them cross documents.
        padded: whether training windows may be padded. val_sources: names of the sources that validation tells apart.
        run_config: the whole config of the run as a plain dict, to travel with its checkpoints.

    Attributes:
        row: metrics of the present step, gathered by this module and the callbacks and logged together.
        latest: the last value of every metric.
        loss, grad_norm: of the last step, 0-d tensors on the device.
        validated_at: the step of the last validation, -1 before any.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        optimizer_config: OptimizerConfig,
        *,
        steps: int,
        tokens_per_step: int,
        log_every: int,
        k_schedule: KSchedule,
        lr_schedule: Trapezoid,
        micro_windows: int,
        clip_grad_norm: float | None,
        z_loss: float = 0.0,
        byte_lengths: Tensor,
        eot_id: int | None,
        padded: bool,
        val_sources: Sequence[str],
        run_config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = TopKTransformer(model_config)
        self.optimizer_config = optimizer_config
        self.steps, self.tokens_per_step, self.log_every = steps, tokens_per_step, log_every
        self.k_schedule, self.lr_schedule = k_schedule, lr_schedule
        self.micro_windows, self.clip_grad_norm, self.z_loss = micro_windows, clip_grad_norm, z_loss
        self.byte_lengths: Tensor
        self.register_buffer("byte_lengths", byte_lengths, persistent=False)
        self.eot_id, self.padded, self.val_sources = eot_id, padded, list(val_sources)
        self.row: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.validated_at = -1
        self.run_config = run_config
        self.loss = self.grad_norm = torch.tensor(math.nan)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.model, self.optimizer_config)

    # --- schedules -------------------------------------------------------------------------------------------------

    def k_at(self, progress: float) -> list[int]:
        """k of every site at ``progress`` (0 to 1)."""
        config = self.model.config
        blocks = config.topk.topk_layers(config.n_layers)
        return [
            self.k_schedule.k(progress, blocks.index(site.layer), site.width, site.k_final) for site in self.model.sites
        ]

    @property
    def final_k(self) -> list[int]:
        return [site.k_final for site in self.model.sites]

    # --- training --------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        # k is that of the step's end, so that the step, its validation and its checkpoint have the same, and the last
        # one the final k. The rate is that of the step's middle, so that it is zero neither at first nor at last.
        progress = (self.global_step + 1) / self.steps
        self.model.set_k(self.k_at(progress))
        self.model.set_progress(progress)
        self.lr_factor = self.lr_schedule((self.global_step + 0.5) / self.steps)

    def training_step(self, ids_bl: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * self.lr_factor
        micro_batches = ids_bl.split(self.micro_windows)
        targets = self._mean_over_ranks((ids_bl[:, 1:] >= 0).sum()) if self.padded else None
        loss, squared_log_z = torch.zeros(2, device=self.device)
        for i, micro_bl in enumerate(micro_batches):
            with self._gradient_sync(last=i == len(micro_batches) - 1):
                share = 1 / len(micro_batches) if targets is None else (micro_bl[:, 1:] >= 0).sum() / targets
                losses = self.model.losses(*self._inputs(micro_bl), z_loss=self.z_loss)
                self.manual_backward(losses.objective * share)
            loss += losses.cross_entropy * share
            squared_log_z += losses.squared_log_z * share
        self.loss = self._mean_over_ranks(loss)
        optimizer.step()
        optimizer.zero_grad()
        if self.is_log_step:
            self.add_metrics(
                {
                    "train/loss": self.loss.item(),
                    "train/grad_norm": self.grad_norm.item(),
                    "train/lr": self.optimizer_config.lr * self.lr_factor,
                }
            )
            if self.z_loss:
                self.add_metrics({"train/z_loss": self._mean_over_ranks(squared_log_z).item()})

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Called at the beginning of optimizer.step, after the callbacks' hook of this name: they see what is clipped.
        self.grad_norm = gradient_norm(self.model.parameters())
        if self.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad_norm, self.grad_norm)

    def _inputs(self, ids_bl: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Input ids, targets (-1 where there is none), and the number of each position's document, all (b, l - 1)."""
        inputs, targets = ids_bl[:, :-1].clamp_min(0), ids_bl[:, 1:]
        return inputs, targets, None if self.eot_id is None else document_numbers(inputs, self.eot_id)

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return value
        total = value.clone()
        torch.distributed.all_reduce(total)  # Lightning's reduce has all hosts wait for each other first
        return total / self.trainer.world_size

    def _gradient_sync(self, last: bool) -> Any:
        """With several devices, gradients are exchanged once a step, with the last micro-batch."""
        strategy = self.trainer.strategy
        if last or not isinstance(strategy, ParallelStrategy):
            return torch.enable_grad()
        return strategy.block_backward_sync()

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        self.log_row()

    # --- metrics ---------------------------------------------------------------------------------------------------

    def is_logged(self, step: int) -> bool:
        """Whether the metrics of ``step`` are logged."""
        return step % self.log_every == 0 or step == self.steps

    @property
    def is_log_step(self) -> bool:
        """Whether the step just taken is one whose metrics are logged."""
        return self.is_logged(self.global_step)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Adds to the row that will be logged for the present step. For callbacks."""
        self.row.update(metrics)

    def forget_gradients(self, parameter: Tensor, where: Tensor) -> None:
        """Zeroes what the optimizer remembers of the gradients of ``parameter``, at the entries where the bool tensor
        ``where`` is True. For callbacks."""
        forget(self.trainer.optimizers[0], parameter, where)

    def log_row(self) -> None:
        """Sends the row to every logger, under the number of steps taken, and starts a new one.

        Every row has ``train/tokens``: W&B draws against one another only what shares a row.
        """
        if self.row:
            self.row["train/tokens"] = self.global_step * self.tokens_per_step
            self.latest.update(self.row)
            for logger in self.trainer.loggers:
                logger.log_metrics(dict(self.row), step=self.global_step)
            self.row = {}

    def add_histogram(self, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        """Logs a histogram for the present step. For callbacks."""
        if self.trainer.is_global_zero:
            log_histogram(self.trainer.loggers, name, counts, edges, self.global_step)

    # --- validation ------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        # Per source: nats, nats at the final k, tokens, bytes.
        self.val_sums = torch.zeros(len(self.val_sources), 4, dtype=torch.float64)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        ids_bl, sources_bt = batch
        inputs, targets, documents = self._inputs(ids_bl)
        nats = nats_final = self.model.token_losses(inputs, targets, documents)
        if [site.k_on_host for site in self.model.sites] != self.final_k:
            with self.model.using_k(self.final_k):
                nats_final = self.model.token_losses(inputs, targets, documents)
        valid = targets >= 0
        text_bytes = self.byte_lengths[targets.clamp_min(0)] * valid
        per_token = torch.stack(
            [part.flatten().cpu().double() for part in (nats, nats_final, valid, text_bytes)], dim=1
        )
        self.val_sums.index_add_(0, sources_bt.flatten().cpu(), per_token)

    def on_validation_epoch_end(self) -> None:
        sums = self.val_sums
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu()
        total = sums.sum(0)
        nats, nats_final, tokens, text_bytes = total.tolist()
        metrics = {
            "val/loss": nats / tokens,
            "val/loss_final_k": nats_final / tokens,
            "val/bpb": nats / (text_bytes * math.log(2)),
            "val/bpb_final_k": nats_final / (text_bytes * math.log(2)),
            "val/perplexity": (total[0] / total[2]).exp().item(),  # inf, where math.exp would raise
            "val/tokens": int(tokens),
        }
        for name, (nats, _, tokens, text_bytes) in zip(self.val_sources, sums.tolist(), strict=True):
            if name and text_bytes:
                metrics[f"val/loss/{name}"] = nats / tokens
                metrics[f"val/bpb/{name}"] = nats / (text_bytes * math.log(2))
        self.validated_at = self.global_step
        self.add_metrics(metrics)
        self.log_row()
        # Also through Lightning, so that its own callbacks (early stopping and the like) can monitor them.
        self.log_dict(metrics, logger=False, sync_dist=False)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["topklm"] = {
            "version": __version__,
            "config": self.run_config,
            "precision": self.trainer.precision,  # what auto meant here
            "k": [int(site.k) for site in self.model.sites],
            "latest": dict(self.latest),
            "validated_at": self.validated_at,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.latest = dict(checkpoint["topklm"]["latest"])
        self.validated_at = checkpoint["topklm"]["validated_at"]
