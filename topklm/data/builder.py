"""Builds the two token stores of a choice, training and validation, from a source: shard by shard, and on from where
an earlier builder ended."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .encode import Encoder, count_bytes
from .sources import Document, Source, beginning, is_validation, read_documents
from .sources.base import Cursor
from .store_writer import TokenStoreWriter, shard_capacity
from .tokenizer import Tokenizer

PROGRESS_EVERY = 100  # documents


@dataclass(frozen=True)
class Split:
    """How documents are told apart, and how their tokens are laid out on disk.

    Attributes:
        val_fraction: share of documents held out, chosen by a hash of their text; they are never trained on.
        hold_out_tokens: keep only the first so many held-out tokens, so that validation can begin early in a long
            stream; None keeps all.
        shard_tokens: tokens per shard; None lets shards grow, see ``shard_capacity``.
    """

    val_fraction: float = 0.05
    hold_out_tokens: int | None = None
    shard_tokens: int | None = None

    def capacity(self, number: int) -> int:
        """Tokens after which shard ``number`` is full."""
        return self.shard_tokens or shard_capacity(number)


@dataclass(frozen=True)
class Progress:
    """What a builder has done so far: tokens and documents written, bytes of their text, and where in the source it
    is."""

    tokens: int
    documents: int
    text_bytes: int
    cursor: Cursor


class Tally:
    """Counts what is left out of a source, as of the document last written: sources are read ahead of the writing, and
    a writer that goes on later must not count anything twice.

    Attributes:
        written: counts by reason. n_written: documents written.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.written: dict[str, int] = {}
        self._empty = self._n_read = self.n_written = 0
        self._changes: deque[tuple[int, dict[str, int]]] = deque()  # documents read before, counts since

    def of(self, documents: Iterator[Document]) -> Iterator[Document]:
        """The documents that hold something; whatever else is counted."""
        before = self._counts()
        for document in documents:
            self._empty += document.is_empty
            if self._counts() != before:
                before = self._counts()
                self._changes.append((self._n_read, before))
            if not document.is_empty:
                self._n_read += 1
                yield document

    def advance(self) -> None:
        """One more document is being written."""
        self.n_written += 1
        while self._changes and self._changes[0][0] < self.n_written:
            self.written = self._changes.popleft()[1]

    def finish(self) -> None:
        """All has been read."""
        self.written = self._counts()

    def _counts(self) -> dict[str, int]:
        return {**self.source.skipped, **({"empty": self._empty} if self._empty else {})}


class StoreBuilder:
    """Writes ``train/`` and ``validation/`` in ``folder``. One at a time may be at work in a folder.

    Documents with no text but white space are left out. The training store's manifest is written last and says how far
    validation had come, so that both can be cut back to the same document.

    Args:
        processes: of tokenizing, see ``Encoder``.
        on_progress: called now and then while writing.

    Raises:
        UserError: the source cannot be read or its tokens are not the tokenizer's.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        tokenizer: Tokenizer,
        split: Split,
        processes: int = 0,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.source, self.tokenizer, self.split = source, tokenizer, split
        self._encoder = Encoder(tokenizer, processes)
        self.on_progress = on_progress
        about = {"source": source.name, "source_fingerprint": source.fingerprint, "tokenizer": tokenizer.fingerprint}
        self.train, self.validation = (
            TokenStoreWriter(
                folder / name, tokenizer.vocab_size, tokenizer.eot_id, about | {"split": name}, split.capacity
            )
            for name in ("train", "validation")
        )
        notes = self.train.notes or {"validation_shards": 0, "validation_complete": False, "skipped": {}}
        self.validation.cut(notes["validation_shards"], notes["validation_complete"], self.train.continues_after)
        self._skipped_before: dict[str, int] = notes["skipped"]
        self._tally = Tally(source)
        self._documents: Generator[tuple[Document, np.ndarray]] | None = None
        self._again: tuple[int, Generator[tuple[Document, np.ndarray]]] | None = None  # shard that would follow
        self._last: Cursor = self.train.continues_after

    @property
    def complete(self) -> bool:
        return self.train.complete

    @property
    def next_shard_bytes(self) -> int:
        """About what the training shard that is written next will take on disk."""
        return self.split.capacity(len(self.train.shards)) * self.train.dtype.itemsize

    @property
    def skipped(self) -> dict[str, int]:
        """Documents left out, by reason, over all sittings."""
        now = self._tally.written
        return {kind: self._skipped_before.get(kind, 0) + now.get(kind, 0) for kind in now | self._skipped_before}

    def advance(self) -> None:
        """Writes until one more training shard is published, or the source ends."""
        assert not self.complete
        if self._documents is None:
            if self.train.continues_after is None:
                self.train.continues_after = beginning(self.source)
            documents = self._tally.of(read_documents(self.source, self.train.continues_after))
            self._documents = self._encoder.encode(documents)
        for document, ids in self._documents:
            self._tally.advance()
            text_bytes = count_bytes(document, ids, self.tokenizer)
            if not is_validation(document, self.split.val_fraction):
                self.train.append(document, ids, text_bytes)
            elif not self._validation_is_full():
                self.validation.append(document, ids, text_bytes)
            self._last = document.cursor
            if self.on_progress is not None and self._tally.n_written % PROGRESS_EVERY == 0:
                self.on_progress(self.progress)
            if self.train.is_full:
                self._seal(ended=False)
                return
        self._documents = None
        self._seal(ended=True)

    def run(self) -> None:
        """Writes all that is left, and again what was dropped under a disk budget."""
        for number in range(len(self.train.shards)):
            if not self.train.has(number):
                self.remake(number)
        while not self.complete:
            self.advance()

    def _validation_is_full(self) -> bool:
        most = self.split.hold_out_tokens
        return self.validation.complete or (most is not None and self.validation.total("tokens") > most)

    def _seal(self, ended: bool) -> None:
        if ended:
            self._tally.finish()
            self._check_not_empty()
        if not self.validation.complete:
            self.validation.seal(self._last, complete=ended or self._validation_is_full())
        notes: dict[str, Any] = {
            "validation_shards": len(self.validation.shards),
            "validation_complete": self.validation.complete,
            "skipped": self.skipped,
        }
        self.train.seal(self._last, complete=ended, notes=notes)
        if self.on_progress is not None:
            self.on_progress(self.progress)

    @property
    def progress(self) -> Progress:
        def total(name: str) -> int:
            return self.train.total(name) + self.validation.total(name)

        return Progress(total("tokens"), total("documents"), total("text_bytes"), self._last)

    def _check_not_empty(self) -> None:
        if self.train.total("tokens") == self.validation.total("tokens") == 0:
            left_out = f" ({describe_skipped(self.skipped)} left out)" if self.skipped else ""
            raise UserError(f"The source {self.source.name} holds no text{left_out}: nothing to train on.")
        for name, store in (("training", self.train), ("validation", self.validation)):
            if store.total("tokens") == 0:
                if self.progress.documents == 1:
                    raise UserError(
                        f"The source {self.source.name} holds one document, and a document goes to training or to "
                        f"validation as a whole: cut the text into several, such as the lines of a .jsonl."
                    )
                raise UserError(
                    f"data.val_fraction={self.split.val_fraction} leaves the {name} split of {self.source.name} empty: "
                    f"change it, or bring more documents."
                )

    def remake(self, number: int) -> None:
        """Writes a training shard again that had been dropped; shards that follow each other are made in one go
        through the source. Raises UserError if the source has changed."""
        entry = self.train.shards[number]
        documents = self._documents_of(number)
        shard = self.train.begin_again(number)
        try:
            for document, ids in documents:
                shard.append(document, ids, count_bytes(document, ids, self.tokenizer))
                if shard.documents == entry["documents"]:
                    break
        except BaseException:
            shard.discard()
            raise
        self._again = (number + 1, documents)
        self.train.put_back(number, shard)

    def _documents_of(self, number: int) -> Generator[tuple[Document, np.ndarray]]:
        """The training documents from the beginning of a shard on."""
        if self._again is not None:
            (following, documents), self._again = self._again, None
            if following == number:
                return documents
            documents.close()
        wanted = (
            document
            for document in read_documents(copy.deepcopy(self.source), self.train.shards[number]["begins_after"])
            if not document.is_empty and not is_validation(document, self.split.val_fraction)
        )
        return self._encoder.encode(wanted)

    def close(self) -> None:
        """Drops what is not published yet."""
        for documents in (self._documents, self._again and self._again[1]):
            if documents is not None:
                documents.close()
        self._encoder.close()
        self.train.discard()
        self.validation.discard()


def describe_skipped(skipped: dict[str, int]) -> str:
    """Such as ``2 lines, 1 row of en, 3 empty``."""
    return ", ".join(f"{count:,} {_plural(kind) if count > 1 else kind}" for kind, count in skipped.items())


def _plural(kind: str) -> str:
    noun, of, part = kind.partition(" of ")
    return kind if noun == "empty" else f"{noun}s{of}{part}"
