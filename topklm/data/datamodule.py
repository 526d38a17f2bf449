"""The LightningDataModule: batches by position, and the position in the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .prepare import Prepared
from .windows import StepSampler, TrainWindows, ValidationWindows


class TimedLoader(DataLoader):
    """A DataLoader that counts the seconds spent waiting for it in ``wait_seconds``."""

    wait_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.wait_seconds += time.perf_counter() - started
            yield batch


class TokenData(L.LightningDataModule):
    """Batches of windows from prepared stores. A train batch is one rank's share of one optimizer step, (b, seq_len +
    1) int64.

    Args:
        prepared: tokenizer and stores. seq_len: targets per window. seed, block_windows: of the order of windows.
        steps, windows_per_step: length of the run and size of a step, over all ranks.
        val_windows: windows per validation batch. max_val_tokens: validate on that many tokens, None for all.
        num_workers: DataLoader workers.

    Raises:
        UserError: the training data is shorter than one window, or there is no validation data.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        seq_len: int,
        seed: int,
        block_windows: int,
        steps: int,
        windows_per_step: int,
        val_windows: int,
        max_val_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.train = TrainWindows(prepared.train, seq_len, seed, block_windows)
        self.validation = ValidationWindows(prepared.validation, seq_len, max_val_tokens)
        self.steps, self.windows_per_step, self.val_windows = steps, windows_per_step, val_windows
        self.num_workers = num_workers
        self.position = 0  # windows trained on before this process began
        order = {"seed": seed, "block_windows": block_windows, "seq_len": seq_len}
        self.fingerprint = {"data": prepared.fingerprint, "tokenizer": prepared.tokenizer.fingerprint, **order}

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        sampler = StepSampler(
            self.steps,
            self.windows_per_step,
            self.trainer.global_rank,
            self.trainer.world_size,
            first_step=self.position // self.windows_per_step,
        )
        return TimedLoader(self.train, batch_sampler=sampler, collate_fn=_as_is, **self._worker_options())

    def val_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        mine: Dataset = torch.utils.data.Subset(
            self.validation, range(self.trainer.global_rank, len(self.validation), self.trainer.world_size)
        )
        return DataLoader(mine, batch_size=self.val_windows)

    def _worker_options(self) -> dict[str, Any]:
        assert self.trainer is not None
        cuda = self.trainer.strategy.root_device.type == "cuda"
        return {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0, "pin_memory": cuda}

    def state_dict(self) -> dict[str, Any]:
        """The position follows from the steps taken, so it is the same on any number of ranks and workers."""
        assert self.trainer is not None
        return {"position": self.trainer.global_step * self.windows_per_step, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the position. Raises UserError if the checkpoint was trained on other data or in another order."""
        for name, value in state_dict["fingerprint"].items():
            if self.fingerprint[name] != value:
                raise UserError(
                    f"The checkpoint was trained with {name} {value}, but here it is {self.fingerprint[name]}: "
                    "continue the run with the data and settings it began with."
                )
        self.position = state_dict["position"]


def _as_is(batch: Any) -> Any:
    return batch
