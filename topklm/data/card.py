"""A data card: what a source holds as a tokenizer sees it, counted in one pass and in little memory."""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import UserError
from .builder import Split, describe_skipped
from .encode import encode_documents
from .sources import Document, Mixture, Source, is_validation
from .tokenizer import Tokenizer

SAMPLES = 5  # documents shown
EXCERPT = 200  # characters of each
BINS_PER_OCTAVE = 4  # of the histogram of lengths
DAMAGE = re.compile("[\ufffd\ud800-\udfff]")  # U+FFFD, and halves of characters, which are encoded as U+FFFD

T = TypeVar("T")


@dataclass
class Amount:
    """So much text: documents, tokens (without end-of-text tokens), bytes of UTF-8."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0

    def add(self, tokens: int, text_bytes: int) -> None:
        """One more document."""
        self.documents += 1
        self.tokens += tokens
        self.text_bytes += text_bytes


@dataclass(frozen=True)
class Part:
    """A part of a mixture: the share of the text (0 to 1) that its weight asks for, and what came."""

    asked: float
    amount: Amount = field(default_factory=Amount)


@dataclass(frozen=True)
class Lengths:
    """Lengths of documents in tokens.

    Attributes:
        min, median, mean, p95, max: tokens.
        edges: (n_bins + 1,) int64. Bin i holds lengths of edges[i] and more, below edges[i + 1].
        documents, tokens: (n_bins,) int64, in the documents of each bin.
    """

    min: int
    median: float
    mean: float
    p95: float
    max: int
    edges: np.ndarray
    documents: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, lengths: np.ndarray) -> Lengths:
        """Of (n,) lengths, each 1 or more, n at least 1."""
        shortest, longest = int(lengths.min()), int(lengths.max())
        edges = _edges(shortest, longest)
        return cls(
            min=shortest,
            median=float(np.median(lengths)),
            mean=float(lengths.mean()),
            p95=float(np.percentile(lengths, 95)),
            max=longest,
            edges=edges,
            documents=np.histogram(lengths, edges)[0],
            tokens=np.histogram(lengths, edges, weights=lengths)[0],
        )


@dataclass(frozen=True)
class Sample:
    """A document drawn at random: id, length in tokens, and the beginning of its text on one line."""

    id: str
    tokens: int
    text: str


@dataclass(frozen=True)
class Card:
    """What a source holds. Empty documents are left out of everything but ``empty``, as they are in training.

    Attributes:
        source, source_fingerprint: name and fingerprint. tokenizer, tokenizer_fingerprint, vocab_size: the tokenizer's.
        limit: most documents to read, None for all. seed: of the samples. notes: sentences on what was limited.
        total: all of it. train, validation: the two sides of the split. parts: of a mixture, by name.
        empty: documents with no text but white space. skipped: what the source passed over because it could not be
            read, by reason.
        lengths: of documents.
        copies: documents whose text is exactly that of an earlier one.
        damaged: documents with U+FFFD in them, which stands where bytes were no UTF-8, or with half a character.
        token_counts: (vocab_size,) int64, how often each token occurs.
        samples: a few documents, drawn uniformly.
    """

    source: str
    source_fingerprint: str
    tokenizer: str
    tokenizer_fingerprint: str
    vocab_size: int
    limit: int | None
    seed: int
    notes: list[str]
    total: Amount
    train: Amount
    validation: Amount
    parts: dict[str, Part]
    empty: int
    skipped: dict[str, int]
    lengths: Lengths
    copies: int
    damaged: int
    token_counts: np.ndarray
    samples: list[Sample]

    @property
    def bytes_per_token(self) -> float:
        return self.total.text_bytes / self.total.tokens

    @property
    def skipped_share(self) -> float:
        """Of all that the source met: what it passed over, empty documents and the others."""
        skipped = sum(self.skipped.values())
        return skipped / (skipped + self.empty + self.total.documents)

    @property
    def not_utf8(self) -> int:
        """Documents that were no UTF-8, those passed over and those damaged before they came here."""
        return self.damaged + sum(count for kind, count in self.skipped.items() if "non-UTF-8" in kind)

    @property
    def vocab_used(self) -> int:
        """Tokens of the tokenizer that occur."""
        return int(np.count_nonzero(self.token_counts))

    def to_json(self) -> dict[str, Any]:
        """All but the count of every token, with shares from 0 to 1."""
        total = self.total
        return {
            "source": {"name": self.source, "fingerprint": self.source_fingerprint},
            "tokenizer": {
                "name": self.tokenizer,
                "fingerprint": self.tokenizer_fingerprint,
                "vocab_size": self.vocab_size,
            },
            "limit": self.limit,
            "notes": self.notes,
            **vars(total),
            "bytes_per_token": self.bytes_per_token,
            "empty": self.empty,
            "skipped": self.skipped,
            "skipped_share": self.skipped_share,
            "split": {"train": vars(self.train), "validation": vars(self.validation)},
            "parts": {
                name: {
                    **vars(part.amount),
                    "asked_share": part.asked,
                    "text_share": part.amount.text_bytes / total.text_bytes,
                    "token_share": part.amount.tokens / total.tokens,
                }
                for name, part in self.parts.items()
            },
            "lengths": {
                name: value.tolist() if isinstance(value, np.ndarray) else value
                for name, value in vars(self.lengths).items()
            },
            "copies": {"documents": self.copies, "share": self.copies / total.documents},
            "damaged": {"documents": self.damaged, "share": self.damaged / total.documents},
            "not_utf8": {
                "documents": self.not_utf8,
                "share": self.not_utf8 / (self.total.documents + sum(self.skipped.values())),
            },
            "vocabulary": {
                "size": self.vocab_size,
                "used": self.vocab_used,
                "share": self.vocab_used / self.vocab_size,
            },
            "seed": self.seed,
            "samples": [vars(sample) for sample in self.samples],
        }


def check_limit(limit: Any) -> int | None:
    """The limit, if it is one. Raises UserError if it is not."""
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise UserError(f"limit={limit}: give a number of documents of 1 or more, or null for all.")
    return limit


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
        self._byte_lengths = tokenizer.byte_lengths()
        self._token_counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self._lengths = array("Q")
        self._hashes = array("Q")  # of texts; by 8 bytes each, a billion documents make 0.03 false copies
        self._reservoir: Reservoir[Sample] = Reservoir(SAMPLES, seed)

    def documents(self) -> Iterator[Document]:
        """The documents within the limit that hold something."""
        for document in islice(self._source.documents(), self._limit):
            self._read += 1
            self._on_read(self._read)
            if document.is_empty:
                self._empty += 1
            else:
                yield document

    def add(self, document: Document, ids: np.ndarray) -> None:
        if document.ids is None:
            text, content = document.text, document.text.encode("utf-8", "surrogatepass")
            text_bytes = len(content)
        else:
            if int(ids.max()) >= self._tokenizer.vocab_size:
                raise UserError(
                    f"{document.id} holds the token {int(ids.max())}, but the tokenizer has "
                    f"{self._tokenizer.vocab_size} tokens: choose the tokenizer that these tokens were made with."
                )
            text, content = self._tokenizer.decode(ids), ids.astype("<u4").tobytes()
            text_bytes = int(self._byte_lengths[ids].sum())
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


def _edges(shortest: int, longest: int) -> np.ndarray:
    """Edges of the bins that hold lengths from ``shortest`` to ``longest``: powers of 2 and of its roots, rounded up,
    the same for all sources."""
    powers = np.arange(longest.bit_length() * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE
    edges = np.unique(np.ceil(2**powers).astype(np.int64))
    first = np.searchsorted(edges, shortest, side="right") - 1
    return edges[first : np.searchsorted(edges, longest, side="right") + 1]


def _one_line(text: str) -> str:
    """What a terminal can show: control characters, line ends and the like become spaces, runs of spaces one."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _excerpt(text: str) -> str:
    return _one_line(text[:EXCERPT]) + ("…" if len(text) > EXCERPT else "")
