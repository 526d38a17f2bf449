"""From a stream of documents to windows of equal length: by cutting the stream, or by packing whole documents.

L is a window's length in predictions; a window holds L + 1 tokens, of which the first L are inputs and the last L
targets. -1 pads a window at its end.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from ..files import write_json
from .reader import StoreReader


class Packing(Protocol):
    """A way of making windows of the store behind ``reader``. ``length`` is L."""

    reader: StoreReader
    length: int

    def available(self, first: int, stop: int) -> tuple[int, bool]:
        """Waits until windows [first, stop) can be read, or the store is complete; returns how many windows can be
        read by then, and whether the store is complete."""
        ...

    def rows(self, first: int, count: int) -> np.ndarray:
        """Windows [first, first + count), (count, L + 1), of an integer type; a view where possible."""
        ...


class Concat:
    """Window i is tokens [i L, i L + L] of the stream: nothing is padded, and documents run on into the next window."""

    def __init__(self, reader: StoreReader, length: int) -> None:
        self.reader, self.length = reader, length

    def available(self, first: int, stop: int) -> tuple[int, bool]:
        self.reader.wait_for(first * self.length, stop * self.length + 1)
        return max(0, self.reader.store.tokens - 1) // self.length, self.reader.store.complete

    def rows(self, first: int, count: int) -> np.ndarray:
        tokens = self.reader.read(first * self.length, count * self.length + 1)
        return np.lib.stride_tricks.sliding_window_view(tokens, self.length + 1)[:: self.length]


@dataclass(frozen=True)
class Plan:
    """The windows of one shard: window w holds pieces ``bounds[w]`` to ``bounds[w + 1]``, and piece p is the tokens
    [firsts[p], firsts[p] + counts[p]] of the stream, of which the last is a target only."""

    firsts: np.ndarray
    counts: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.bounds) - 1


class BestFit:
    """Windows of whole documents: each shard's documents are packed best-fit decreasing (Ding et al. 2024, arXiv
    2404.10830), so that few are cut. A document longer than a window fills some alone, and its rest begins another.

    How many windows each shard makes is kept beside the store, so that a large one is not planned as a whole by every
    process that reads a part of it.
    """

    def __init__(self, reader: StoreReader, length: int) -> None:
        self.reader, self.length = reader, length
        self._starts = [0]  # of the shards' windows
        self._plan = lru_cache(maxsize=4)(self._make_plan)

    def __getstate__(self) -> dict[str, object]:
        return {"reader": self.reader, "length": self.length}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def available(self, first: int, stop: int) -> tuple[int, bool]:
        store = self.reader.store
        while True:
            self._count_windows(stop)
            whole = store.complete and len(self._starts) > len(store.shards)
            if self._starts[-1] >= stop or whole:
                return self._starts[-1], whole
            self.reader.wait_for(store.tokens, store.tokens + 1)

    def _count_windows(self, stop: int) -> None:
        """Counts the windows of one shard after another until there are ``stop`` or no more shards."""
        shards = self.reader.store.shards
        counts: list[int] | None = None
        planned = False
        while self._starts[-1] < stop and len(self._starts) <= len(shards):
            number = len(self._starts) - 1
            counts = self._kept_counts() if counts is None else counts
            if number >= len(counts):
                counts.append(len(self._plan(number)))
                planned = True
            self._starts.append(self._starts[-1] + counts[number])
        if planned:
            with suppress(OSError):  # a place that cannot be written
                write_json(self._counts_path, {"first_shard": self._first_shard, "windows": counts})

    def _kept_counts(self) -> list[int]:
        """Windows per shard, as far as they were counted before; none of another store that once stood here."""
        try:
            kept = json.loads(self._counts_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return kept["windows"] if kept["first_shard"] == self._first_shard else []

    @property
    def _counts_path(self) -> Path:
        return self.reader.store.path / f"best_fit_{self.length}.json"

    @property
    def _first_shard(self) -> str:
        return self.reader.store.shards[0]["sha256"]

    def rows(self, first: int, count: int) -> np.ndarray:
        out = np.full((count, self.length + 1), -1, dtype=np.int64)
        row = 0
        while row < count:
            number = int(np.searchsorted(self._starts, first + row, side="right")) - 1
            begin = first + row - self._starts[number]
            plan = self._plan(number)
            end = min(len(plan), begin + count - row)
            self._fill(out[row : row + end - begin], plan, begin, end)
            row += end - begin
        return out

    def _fill(self, out: np.ndarray, plan: Plan, begin: int, end: int) -> None:
        """Windows [begin, end) of a plan. A piece ends with the token that its last prediction is about, which is the
        one that the next piece begins with: both are end-of-text."""
        pieces = slice(plan.bounds[begin], plan.bounds[end])
        firsts, lengths = plan.firsts[pieces], plan.counts[pieces] + 1
        per_window = np.diff(plan.bounds[begin : end + 1])
        before = np.cumsum(plan.counts[pieces]) - plan.counts[pieces]  # predictions in all pieces before
        offsets = before - np.repeat(before[plan.bounds[begin:end] - plan.bounds[begin]], per_window)  # in its window
        targets = np.repeat(np.arange(end - begin), per_window) * out.shape[1] + offsets
        in_piece = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        out.reshape(-1)[np.repeat(targets, lengths) + in_piece] = self.reader.gather(firsts, lengths)

    def _make_plan(self, number: int) -> Plan:
        documents = [(entry["first"], entry["tokens"] + 1) for entry in self.reader.store.documents(number)]
        return best_fit(documents, self.length)


def best_fit(documents: list[tuple[int, int]], length: int) -> Plan:
    """Packs documents into windows.

    Args:
        documents: (first token, number of predictions) each, the end-of-text after it included.
    """
    full = [(first + at, length) for first, count in documents for at in range(0, count - length + 1, length)]
    # The rest of a long document comes first in its window: it has no end-of-text in front that could begin it.
    windows = [[piece] for piece in full]
    room: list[tuple[int, int]] = []  # (predictions left, window), sorted
    rests = [(first + count - count % length, count % length) for first, count in documents if count > length]
    for piece in rests:
        if piece[1]:
            insort(room, (length - piece[1], len(windows)))
            windows.append([piece])
    short = [document for document in documents if document[1] < length]
    for piece in sorted(short, key=lambda document: (-document[1], document[0])):
        slot = bisect_left(room, (piece[1], -1))
        if slot < len(room):
            left, window = room.pop(slot)
            windows[window].append(piece)
        else:
            left, window = length, len(windows)
            windows.append([piece])
        insort(room, (left - piece[1], window))
    pieces = [piece for window in windows for piece in window]
    return Plan(
        np.array([first for first, _ in pieces], dtype=np.int64),
        np.array([count for _, count in pieces], dtype=np.int64),
        np.cumsum([0] + [len(window) for window in windows]),
    )


PACKINGS: dict[str, Callable[[StoreReader, int], Packing]] = {"concat": Concat, "best_fit": BestFit}
