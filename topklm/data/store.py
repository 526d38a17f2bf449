"""The token store: a stream of token ids in shards, under a manifest that says what is in it.

The stream is ``EOT d1 EOT d2 EOT ...``: every document has the end-of-text token on both sides. Beside each shard lies
a JSON Lines file with the documents that begin in it (id, meta, first token, tokens, bytes), so that what a neuron
fires on can be traced to its article. The manifest names finished shards only and is replaced in one piece, so that
what it says is true while a store is being written, after a crash, and when it is complete. A shard that was dropped to
save disk space stays in the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

FORMAT = "topklm-token-store"
VERSION = 2
MANIFEST = "manifest.json"


class TokenStore:
    """A store, read from files as they stand: opening reads the manifest, reading touches only what is asked for.

    Args:
        path: its folder.
        tokenizer: fingerprint of the tokenizer it must have been written with.
        growing: it may be incomplete, or not begun.

    Attributes:
        shards: the manifest's entries, in order. tokens: length of the stream so far. complete: it will not grow.

    Raises:
        UserError: not a store, made by a newer version, incomplete where it must not be, damaged, or written with
        another tokenizer.
    """

    def __init__(self, path: Path, tokenizer: str | None = None, growing: bool = False) -> None:
        self.path, self._tokenizer, self._growing = path, tokenizer, growing
        self._seen: tuple[int, int] | None = None
        self.shards: list[dict[str, Any]] = []
        self.manifest: dict[str, Any] = {}
        self.tokens, self.complete, self.dtype = 0, False, np.dtype("<u2")
        self._starts = np.zeros(1, dtype=np.int64)
        self.refresh()
        if not growing:
            for number in range(len(self.shards)):
                self._check_size(number)

    def refresh(self) -> None:
        """Takes up what was written since."""
        path = self.path / MANIFEST
        try:
            found = path.stat()
            if self._seen == (found.st_mtime_ns, found.st_ino):
                return
        except FileNotFoundError as error:
            if self._growing:
                return
            raise UserError(f"{self.path} is not a token store: it has no {MANIFEST}.") from error
        manifest = read_manifest(self.path)
        if self._tokenizer is not None and manifest["tokenizer"] != self._tokenizer:
            raise UserError(
                f"The token store {self.path} was written with tokenizer {manifest['tokenizer']}, not with "
                f"{self._tokenizer}: use that tokenizer, or another data.cache_dir."
            )
        if not self._growing and not manifest["complete"]:
            raise UserError(f"The token store {self.path} is not complete: prepare it again, and it is finished.")
        self._seen = (found.st_mtime_ns, found.st_ino)
        self.manifest, self.shards = manifest, manifest["shards"]
        self.complete, self.dtype = manifest["complete"], np.dtype(manifest["dtype"])
        self._starts = np.cumsum([0] + [shard["tokens"] for shard in self.shards])
        self.tokens = int(self._starts[-1])

    def shards_of(self, first: int, stop: int) -> range:
        """Numbers of the shards that hold tokens [first, stop) of the stream."""
        begin = int(np.searchsorted(self._starts, first, side="right")) - 1
        return range(begin, int(np.searchsorted(self._starts, stop, side="left")))

    def shard_start(self, number: int) -> int:
        """Position in the stream of the first token of a shard."""
        return int(self._starts[number])

    def file(self, number: int) -> Path:
        return self.path / f"{self.shards[number]['name']}.bin"

    def index(self, number: int) -> Path:
        """Where the documents of a shard are listed."""
        return self.path / f"{self.shards[number]['name']}.jsonl"

    def has(self, number: int) -> bool:
        """Whether the files of a shard are there."""
        return self.file(number).exists() and self.index(number).exists()

    def read(self, first: int, count: int) -> np.ndarray:
        """Tokens [first, first + count) of the stream, (count,). They must exist."""
        return self.gather([first], [count])

    def gather(self, firsts: Sequence[int] | np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stretches [firsts[i], firsts[i] + counts[i]) of the stream one after the other, (sum(counts),). They must
        exist.

        Read rather than mapped: mapped pages would count as this process's memory, and a run reads every page once.
        """
        firsts, counts = np.asarray(firsts, dtype=np.int64), np.asarray(counts, dtype=np.int64)
        assert len(firsts) == 0 or (firsts.min() >= 0 and (firsts + counts).max() <= self.tokens)
        out = np.empty(int(counts.sum()), dtype=self.dtype)
        target, size = memoryview(out.view(np.uint8).data), self.dtype.itemsize
        numbers = np.searchsorted(self._starts, firsts, side="right") - 1
        done = 0
        with ExitStack() as opened:
            files: dict[int, FileIO] = {}
            for first, count, number in zip(firsts.tolist(), counts.tolist(), numbers.tolist(), strict=True):
                stop = first + count
                while first < stop:
                    if number not in files:
                        files[number] = opened.enter_context(FileIO(self.file(number)))
                    n = min(stop, self.shard_start(number + 1)) - first
                    files[number].seek((first - self.shard_start(number)) * size)
                    if not _fill(files[number], target[done * size : (done + n) * size]):
                        self._check_size(number)
                    first, done, number = first + n, done + n, number + 1
        if len(out) and int(out.max()) >= self.manifest["vocab_size"]:
            raise UserError(f"{self.path} is damaged: it holds tokens that its tokenizer does not have. Delete it.")
        return out

    def documents(self, number: int | None = None) -> Iterator[dict[str, Any]]:
        """The documents in order, of one shard or of all: id, meta, ``first`` (position of the end-of-text before it),
        ``tokens`` and ``bytes``."""
        for each in range(len(self.shards)) if number is None else [number]:
            try:
                with open(self.index(each), encoding="utf-8") as lines:
                    yield from map(json.loads, lines)
            except FileNotFoundError as error:
                raise UserError(self._gone(self.index(each))) from error

    def verify(self) -> None:
        """Reads every shard and compares checksums, and counts the documents of its index. Raises UserError at the
        first that differs."""
        for number, shard in enumerate(self.shards):
            self._check_size(number)
            with open(self.file(number), "rb") as data:
                if hashlib.file_digest(data, "sha256").hexdigest() != shard["sha256"]:
                    raise UserError(
                        f"{self.file(number)} has changed since it was written: delete {self.path.parent}, and it is "
                        f"made again."
                    )
            try:
                counted = sum(document["tokens"] + 1 for document in self.documents(number))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(self._gone(self.index(number))) from error
            if counted + (number == 0) != shard["tokens"]:  # the stream begins with an end-of-text
                raise UserError(self._gone(self.index(number)))

    def _gone(self, path: Path) -> str:
        return f"{path} is missing or damaged: delete {self.path.parent}, and it is made again."

    def _check_size(self, number: int) -> None:
        file, expected = self.file(number), self.shards[number]["tokens"] * self.dtype.itemsize
        size = file.stat().st_size if file.exists() else 0
        if size != expected:
            raise UserError(
                f"{file} holds {size} bytes where its manifest says {expected}: delete {self.path.parent}, and it is "
                f"made again."
            )


def _fill(file: FileIO, target: memoryview) -> bool:
    """Reads until ``target`` is full; returns False if the file ends before."""
    while len(target):
        n = file.readinto(target)
        if not n:
            return False
        target = target[n:]
    return True


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store in ``path``. Raises UserError if this version cannot read it."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a token store ({error}): delete it, and it is made again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not a token store: its manifest does not say format {FORMAT}.")
    version = manifest.get("version", 0)
    if version != VERSION:
        whose, advice = ("an older", "delete it") if version < VERSION else ("a newer", "update topklm or delete it")
        raise UserError(f"{path} was written by {whose} topklm (store version {version}): {advice}.")
    return manifest
