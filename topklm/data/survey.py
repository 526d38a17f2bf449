"""Surveying a source for its data card: in one pass and in little memory."""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from ..errors import UserError
from .builder import Split, describe_skipped
from .card import EXCERPT, SAMPLES, Amount, Card, Lengths, Part, Sample
from .encode import count_bytes, encode_documents
from .sources import Document, Mixture, Source, is_validation, read_documents
from .tokenizer import Tokenizer

DAMAGE = re.compile("[\ufffd\ud800-\udfff]")  # U+FFFD, and halves of characters, which are encoded as U+FFFD

T = TypeVar("T")


def data_card(
    source: Source,
    tokenizer: Tokenizer,
    split: Split,
    limit: int | None = None,
    seed: int = 0,
    tokenizer_name: str = "",
    on_read: Callable[[int], object] = lambda documents: None,
) -> Card:
    """Reads a source once and counts. Memory: 16 bytes per document, besides what is being tokenized.

    Args:
        limit: most documents to read; None reads all.
        seed: of the sampled documents.
        tokenizer_name: what the card calls the tokenizer.
        on_read: called with the number of documents read, after each.

    Raises:
        UserError: the source cannot be read, holds no text, or holds tokens that are not the tokenizer's.
    """
    survey = _Survey(source, tokenizer, split, limit, seed, on_read)
    for document, ids in encode_documents(survey.documents(), tokenizer):
        survey.add(document, ids)
    return survey.card(tokenizer_name)


class Reservoir(Generic[T]):
    """A uniform sample of a stream whose length nobody knows (Vitter's algorithm R): after every offer, each item so
    far is in the sample with the same probability."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self._offered = size, 0
        self._random = random.Random(seed)
        self._kept: list[tuple[int, T]] = []

    def offer(self, make: Callable[[], T]) -> None:
        """One more item, made only if it is taken."""
        place = self._offered if self._offered < self.size else self._random.randrange(self._offered + 1)
        if place < self.size:
            self._kept[place : place + 1] = [(self._offered, make())]
        self._offered += 1

    @property
    def sample(self) -> list[T]:
        """What was taken, in the order of the stream."""
        return [item for _, item in sorted(self._kept, key=lambda entry: entry[0])]


class _Survey:
    """What is counted while a source is read."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        split: Split,
        limit: int | None,
        seed: int,
        on_read: Callable[[int], object],
    ) -> None:
        self._source, self._tokenizer, self._split = source, tokenizer, split
        self._limit, self._seed, self._on_read = limit, seed, on_read
        self._read = self._empty = self._damaged = 0
        self._total, self._train, self._validation = Amount(), Amount(), Amount()
        self._parts: dict[str, Part] = {}
        if isinstance(source, Mixture):
            weights = sum(part.weight for part in source.parts.values())
            self._parts = {name: Part(part.weight / weights) for name, part in source.parts.items()}
        self._token_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._lengths = array("Q")
        self._hashes = array("Q")  # of texts; by 8 bytes each, a billion documents make 0.03 false copies
        self._reservoir: Reservoir[Sample] = Reservoir(SAMPLES, seed)

    def documents(self) -> Iterator[Document]:
        """The documents within the limit that hold something."""
        for document in islice(read_documents(self._source), self._limit):
            self._read += 1
            self._on_read(self._read)
            if document.is_empty:
                self._empty += 1
            else:
                yield document

    def add(self, document: Document, ids: np.ndarray) -> None:
        text_bytes = count_bytes(document, ids, self._tokenizer)
        if document.ids is None:
            text, content = document.text, document.text.encode("utf-8", "surrogatepass")
        else:
            text, content = self._tokenizer.decode(ids), ids.astype("<u4").tobytes()
        amounts = [self._total]
        amounts.append(self._validation if is_validation(document, self._split.val_fraction) else self._train)
        if self._parts:
            amounts.append(self._parts[document.meta["source"]].amount)
        for amount in amounts:
            amount.add(len(ids), text_bytes)
        self._lengths.append(len(ids))
        self._hashes.append(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"))
        self._damaged += DAMAGE.search(text) is not None
        np.add.at(self._token_counts, ids, 1)
        self._reservoir.offer(lambda: Sample(_one_line(document.id), len(ids), _excerpt(text)))

    def card(self, tokenizer_name: str) -> Card:
        source, tokenizer, total, skipped = self._source, self._tokenizer, self._total, dict(self._source.skipped)
        if total.documents == 0:
            left_out = skipped | ({"empty": self._empty} if self._empty else {})
            why = f" ({describe_skipped(left_out)} left out)" if left_out else ""
            raise UserError(
                f"The source {source.name} holds no text{why}: look at data.text_column, or raise the limit."
            )
        return Card(
            source=source.name,
            source_fingerprint=source.fingerprint,
            tokenizer=tokenizer_name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            limit=self._limit,
            seed=self._seed,
            notes=self._notes(),
            total=total,
            train=self._train,
            validation=self._validation,
            parts=self._parts,
            empty=self._empty,
            skipped=skipped,
            lengths=Lengths.of(np.frombuffer(self._lengths, dtype=np.uint64).astype(np.int64)),
            copies=total.documents - len(np.unique(np.frombuffer(self._hashes, dtype=np.uint64))),
            damaged=self._damaged,
            token_counts=self._token_counts,
            samples=self._reservoir.sample,
        )

    def _notes(self) -> list[str]:
        notes, hold_out = [], self._split.hold_out_tokens
        if self._read == self._limit:  # whether it holds more is not asked: that might fail, and it is beyond the limit
            notes.append(
                f"Only the first {self._limit:,} documents of the source were read (limit={self._limit}): all figures "
                f"are of them."
            )
        if hold_out is not None and self._validation.tokens + self._validation.documents > hold_out:
            notes.append(
                f"Training keeps the first {hold_out:,} tokens of the validation side (data.hold_out_tokens) and drops "
                f"the rest of it."
            )
        return notes


def _one_line(text: str) -> str:
    """What a terminal can show: control characters, line ends and the like become spaces, runs of spaces one."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _excerpt(text: str) -> str:
    return _one_line(text[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")
