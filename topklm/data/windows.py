"""Which tokens are trained on when: windows of a store, in an order that is a pure function of seed, epoch and
position.

Nothing is shuffled in a buffer and no state is kept, so a run that stops at position p goes on at position p, with any
number of workers or ranks. L is the window's length; a window holds L + 1 tokens, of which the first L are inputs and
the last L targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import UserError
from .store import TokenStore


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): scatters 64-bit integers, the same on every machine and
    version."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4)
def block_permutation(seed: int, epoch: int, block: int, length: int) -> np.ndarray:
    """A permutation of range(length), by sorting hashes. Library shuffles may change between versions; this one
    cannot."""
    with np.errstate(over="ignore"):
        key = np.zeros(1, dtype=np.uint64)
        for part in (seed, epoch, block):
            key = mix(key + np.uint64(0x9E3779B97F4A7C15) * np.uint64(part % 2**64 + 1))
        hashes = mix(key + np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return np.argsort(hashes, kind="stable")


class WindowOrder:
    """Position in the run to window of the store: every epoch visits every window once, permuted inside blocks.

    Args:
        n_windows: windows in the store.
        seed: of the permutations.
        block_windows: windows per block. A block is finished before the next begins, so training can run on a store
            that still grows.
    """

    def __init__(self, n_windows: int, seed: int, block_windows: int) -> None:
        self.n_windows, self.seed, self.block_windows = n_windows, seed, block_windows

    def __getitem__(self, position: int) -> int:
        epoch, inside = divmod(position, self.n_windows)
        block, offset = divmod(inside, self.block_windows)
        first = block * self.block_windows
        length = min(self.block_windows, self.n_windows - first)
        return first + int(block_permutation(self.seed, epoch, block, length)[offset])


class TrainWindows(Dataset):
    """Windows by position in the run: ``dataset[position]`` is (L + 1,) int64. It never ends: epochs follow each other.

    Raises:
        UserError: the store is shorter than one window.
    """

    def __init__(self, store: TokenStore, seq_len: int, seed: int, block_windows: int) -> None:
        self.store, self.seq_len = store, seq_len
        self.n_windows = (store.tokens - 1) // seq_len
        if self.n_windows == 0:
            raise UserError(
                f"model.seq_len={seq_len} is longer than the training data, which has {store.tokens} tokens: shorten "
                f"it or bring more text."
            )
        self.order = WindowOrder(self.n_windows, seed, block_windows)

    def __getitem__(self, position: int) -> Tensor:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        """A whole batch at once, (len(positions), L + 1): one copy, no collation."""
        ids = np.empty((len(positions), self.seq_len + 1), dtype=np.int64)
        for row, position in enumerate(positions):
            ids[row] = self.store.read(self.order[position] * self.seq_len, self.seq_len + 1)
        return torch.from_numpy(ids)


class StepSampler(Sampler[list[int]]):
    """This rank's share of each optimizer step, as positions. Its length is the whole run's, so that a step's number
    is its index.

    Args:
        steps: optimizer steps of the whole run. windows_per_step: over all ranks.
        rank, world: this process, and their number; ``world`` must divide ``windows_per_step``.
        first_step: where to begin: steps already trained on.
    """

    def __init__(self, steps: int, windows_per_step: int, rank: int, world: int, first_step: int) -> None:
        self.steps, self.windows_per_step, self.first_step = steps, windows_per_step, first_step
        self.share = windows_per_step // world
        self.offset = rank * self.share

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.steps):
            first = step * self.windows_per_step + self.offset
            yield list(range(first, first + self.share))


class ValidationWindows(Dataset):
    """Every token of a store but the first, predicted exactly once: (L + 1,) int64, the last window padded with -1."""

    def __init__(self, store: TokenStore, seq_len: int, max_tokens: int | None = None) -> None:
        self.store, self.seq_len = store, seq_len
        self.targets = store.tokens - 1 if max_tokens is None else min(store.tokens - 1, max_tokens)
        if self.targets <= 0:
            raise UserError("The validation split is empty: raise data.val_fraction or bring more text.")

    def __len__(self) -> int:
        return -(-self.targets // self.seq_len)

    def __getitem__(self, index: int) -> Tensor:
        first = index * self.seq_len
        count = min(self.seq_len, self.targets - first) + 1
        ids = torch.full((self.seq_len + 1,), -1, dtype=torch.int64)
        ids[:count] = torch.from_numpy(self.store.read(first, count).astype(np.int64))
        return ids
