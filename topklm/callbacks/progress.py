"""Shows a run as it goes: a progress bar with loss, k and tokens per second, or plain lines where there is no
terminal."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .base import Watched, watched

LINE_SECONDS = 10.0  # between plain lines


class ProgressBar(L.Callback):
    """Progress of training, updated at logged steps; validation losses are printed above the bar."""

    def __init__(self) -> None:
        self.console = Console()
        self.bar: Progress | None = None
        self._said = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank != 0:
            return
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("<"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task(
                "", total=watched(pl_module).steps, completed=pl_module.global_step, status=""
            )
            self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if trainer.global_rank != 0 or not module.is_log_step:
            return
        if self.bar is not None:
            self.bar.update(self.task, completed=module.global_step, status=status(module))
        elif time.monotonic() - self._said >= LINE_SECONDS or module.global_step == module.steps:
            self._said = time.monotonic()
            self.console.print(
                f"step {module.global_step}/{module.steps}  {status(module)}", highlight=False, soft_wrap=True
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_rank != 0:
            return
        module = watched(pl_module)
        line = f"step {module.global_step}: validation loss {module.latest['val/loss']:.4f} nats/token"
        line += f", {module.latest['val/bpb']:.4f} bits/byte"
        if module.latest["val/loss_final_k"] != module.latest["val/loss"]:
            line += f" ({module.latest['val/loss_final_k']:.4f} nats/token at the final k)"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()


def status(module: Watched) -> str:
    """Loss, k and speed, as far as they are known."""
    values = {**module.latest, **module.row}
    ks = sorted({int(site.k) for site in module.model.sites})
    parts = [f"loss {values['train/loss']:.3f}"] if "train/loss" in values else []
    parts += [f"k {'-'.join(str(k) for k in ks[:: max(1, len(ks) - 1)])}"] if ks else ["dense"]
    if "throughput/tokens_per_second" in values:
        parts.append(f"{values['throughput/tokens_per_second']:,.0f} tokens/s")
    return "  ".join(parts)
