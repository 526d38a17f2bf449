"""The LightningDataModule: batches by position, and the position in the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from ..errors import UserError
from .packing import PACKINGS
from .prepare import Prepared
from .windows import StepSampler, TrainWindows, ValidationWindows


class TimedLoader(DataLoader):
    """A DataLoader that counts the seconds spent waiting for it in ``wait_seconds``, and calls ``check`` before each
    batch: it raises when no more will come."""

    wait_seconds = 0.0
    check: Callable[[], None]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = super().__iter__()
        while True:
            self.check()
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except UserError as error:  # of a worker, which wraps it in its traceback
                self.check()
                raise UserError(str(error).rpartition("UserError: ")[2].strip()) from error
            self.wait_seconds += time.perf_counter() - started
            yield batch


class ValidationLoader:
    """This rank's share of validation. It has no length: Lightning asks for one before training begins, when the
    validation store may still be in the making."""

    def __init__(self, data: TokenData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        trainer = self.data.trainer
        assert trainer is not None
        windows = self.data.validation
        mine = range(trainer.global_rank, len(windows), trainer.world_size)
        yield from DataLoader(torch.utils.data.Subset(windows, mine), batch_size=self.data.val_windows)


class TokenData(L.LightningDataModule):
    """Batches of windows from prepared stores. A train batch is one rank's share of one optimizer step, (b, seq_len +
    1) int64, padded with -1 where whole documents are packed.

    Args:
        prepared: tokenizer and stores. seq_len: targets per window. packing: ``concat`` or ``best_fit``.
        seed, block_windows, order: of the order of windows.
        steps, windows_per_step: length of the run and size of a step, over all ranks.
        val_windows: windows per validation batch. max_val_tokens: validate on that many tokens, None for all.
        num_workers: DataLoader workers.

    Raises:
        UserError: when loaders are made: the training data is shorter than one window, there is no validation data, or
        the background writer has died.
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
        packing: str = "concat",
        order: str = "shuffled",
        max_val_tokens: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.prepared, self.seq_len, self.max_val_tokens = prepared, seq_len, max_val_tokens
        self.train = TrainWindows(PACKINGS[packing](prepared.train, seq_len), seed, block_windows, order)
        self.steps, self.windows_per_step, self.val_windows = steps, windows_per_step, val_windows
        self.num_workers = num_workers
        self.position = 0  # windows trained on before this process began
        how = {"seed": seed, "block_windows": block_windows, "seq_len": seq_len, "packing": packing, "order": order}
        self.fingerprint = {"data": prepared.fingerprint, "tokenizer": prepared.tokenizer.fingerprint, **how}

    @cached_property
    def validation(self) -> ValidationWindows:
        """Waits until the validation store is complete, which a background writer sees to first."""
        return ValidationWindows(self.prepared.validation, self.seq_len, self.max_val_tokens, self.prepared.sources)

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        self.train.locate(self.position)  # here, so that what is wrong shows before any worker starts
        if self.num_workers:
            self.prepared.train.forget()  # from here on workers say what they need
        sampler = StepSampler(
            self.steps,
            self.windows_per_step,
            self.trainer.global_rank,
            self.trainer.world_size,
            first_step=self.position // self.windows_per_step,
        )
        loader = TimedLoader(self.train, batch_sampler=sampler, collate_fn=_as_is, **self._worker_options())
        loader.check = self.prepared.check
        return loader

    def val_dataloader(self) -> ValidationLoader:
        return ValidationLoader(self)

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
        theirs = state_dict["fingerprint"]
        for name in sorted(theirs.keys() | self.fingerprint.keys()):
            if theirs.get(name) != self.fingerprint.get(name):
                raise UserError(
                    f"The checkpoint was trained with {name} {theirs.get(name)}, but here it is "
                    f"{self.fingerprint.get(name)}: "
                    "continue the run with the data and settings it began with."
                )
        self.position = state_dict["position"]


def _as_is(batch: Any) -> Any:
    return batch
