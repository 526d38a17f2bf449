"""Which tokens are trained on when: windows in an order that is a pure function of seed, epoch and position.

Nothing is shuffled in a buffer and no state is kept, so a run that stops at position p goes on at position p, with any
number of workers or ranks. L is the window's length (see packing.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ..errors import UserError
from .packing import Packing
from .reader import StoreReader


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


class TrainWindows(Dataset):
    """Windows by position in the run: ``dataset[position]`` is (L + 1,) int64. It never ends: epochs follow each other.

    An epoch visits every window once, block by block: a block of windows is permuted in itself and finished before the
    next begins, so training can run on a store that still grows. One block at a time is held in memory.

    Args:
        packing: makes windows of the store.
        seed: of the permutations.
        block_windows: windows per block.
        order: ``shuffled``, or ``sequential``.
    """

    def __init__(self, packing: Packing, seed: int, block_windows: int, order: str = "shuffled") -> None:
        self.packing, self.seed, self.block_windows, self.order = packing, seed, block_windows, order
        self._held: tuple[int, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_held": None}

    def locate(self, position: int) -> tuple[int, int, int, int]:
        """Epoch, block, place in the block, and length of the block, of a position. Waits for the block to be written.

        Raises:
            UserError: the store is complete and shorter than one window.
        """
        block = position // self.block_windows
        n_windows, complete = self.packing.available(block * self.block_windows, (block + 1) * self.block_windows)
        if complete and n_windows == 0:
            raise UserError(
                f"model.seq_len={self.packing.length} is longer than the training data, which has "
                f"{self.packing.reader.store.tokens:,} tokens: shorten it or bring more text."
            )
        epoch, inside = divmod(position, n_windows) if complete else (0, position)
        block, place = divmod(inside, self.block_windows)
        return epoch, block, place, min(self.block_windows, n_windows - block * self.block_windows)

    def window(self, position: int) -> int:
        """Number of the window at a position of the run."""
        epoch, block, place, length = self.locate(position)
        if self.order == "shuffled":
            place = int(block_permutation(self.seed, epoch, block, length)[place])
        return block * self.block_windows + place

    def __getitem__(self, position: int) -> Tensor:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        """A whole batch at once, (len(positions), L + 1): one copy, no collation. Positions follow each other."""
        parts = []
        at, stop = positions[0], positions[-1] + 1
        assert stop - at == len(positions)
        while at < stop:
            epoch, block, place, length = self.locate(at)
            count = min(stop - at, length - place)
            rows = np.arange(place, place + count)
            if self.order == "shuffled":
                rows = block_permutation(self.seed, epoch, block, length)[rows]
            parts.append(self._block(block, length)[rows].astype(np.int64))
            at += count
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _block(self, block: int, length: int) -> np.ndarray:
        if self._held is None or self._held[0] != block:
            self._held = None  # before the next is read, so that there are never two
            self._held = (block, self.packing.rows(block * self.block_windows, length))
        return self._held[1]


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
    """Every token of a store but the first, predicted exactly once.

    Item i is a pair: (L + 1,) int64 tokens, the last window padded with -1, and (L,) int64, for each target the number
    of its document's source in ``sources``.

    Args:
        reader: the store. Waits until it is complete. max_tokens: use the first so many tokens only; None for all.
        sources: names of the parts of a mixture; one name of whatever kind elsewhere.
    """

    def __init__(
        self, reader: StoreReader, seq_len: int, max_tokens: int | None = None, sources: Sequence[str] = ("",)
    ) -> None:
        reader.wait_until_complete()
        store = reader.store
        self.store, self.seq_len = store, seq_len
        self.targets = store.tokens - 1 if max_tokens is None else min(store.tokens - 1, max_tokens)
        if self.targets <= 0:
            raise UserError("The validation split is empty: raise data.val_fraction or bring more text.")
        documents = list(store.documents())
        self._firsts = np.array([document["first"] for document in documents])
        numbers = {name: number for number, name in enumerate(sources)}
        of_mixture = len(sources) > 1
        self._source_of = np.array([numbers[d["source"]] if of_mixture else 0 for d in documents], dtype=np.int64)

    def __len__(self) -> int:
        return -(-self.targets // self.seq_len)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        first = index * self.seq_len
        count = min(self.seq_len, self.targets - first) + 1
        ids = torch.full((self.seq_len + 1,), -1, dtype=torch.int64)
        ids[:count] = torch.from_numpy(self.store.read(first, count).astype(np.int64))
        # A document's first target is the token after its end-of-text, its last the end-of-text that follows.
        positions = np.arange(first, first + self.seq_len)
        document = np.searchsorted(self._firsts, positions, side="right") - 1
        return ids, torch.from_numpy(self._source_of[document])
