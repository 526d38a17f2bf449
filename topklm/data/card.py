"""A data card: what a source holds, as a tokenizer sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

SAMPLES = 5  # documents shown
EXCERPT = 200  # characters of each
BINS_PER_OCTAVE = 4  # of the histogram of lengths


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


def _edges(shortest: int, longest: int) -> np.ndarray:
    """Edges of the bins that hold lengths from ``shortest`` to ``longest``: powers of 2 and of its roots, rounded up,
    the same for all sources."""
    powers = np.arange(longest.bit_length() * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE
    edges = np.unique(np.ceil(2**powers).astype(np.int64))
    first = np.searchsorted(edges, shortest, side="right") - 1
    return edges[first : np.searchsorted(edges, longest, side="right") + 1]
