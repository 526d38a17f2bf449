"""Where text comes from: a source yields documents in a fixed order, and can begin again after any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...errors import UserError

Cursor = Any  # a place between two documents, as plain JSON; None is the beginning


@dataclass(frozen=True)
class Document:
    """One text with a name.

    Attributes:
        id: unique within its source, stable over runs.
        text: what is trained on.
        meta: what is known of it besides, such as title, topic and language.
        cursor: the place in its source right after it.
        ids: (n,) token ids, of a document that comes tokenized; ``text`` is then empty.
    """

    id: str
    text: str
    meta: dict[str, str] = field(default_factory=dict)
    cursor: Cursor = None
    ids: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes of text; of a document that comes tokenized, four per token, about what they stand for."""
        return len(self.text.encode("utf-8", "surrogatepass")) if self.ids is None else 4 * len(self.ids)

    @property
    def is_empty(self) -> bool:
        return not self.text.strip() if self.ids is None else len(self.ids) == 0


class Source(Protocol):
    """Anything that yields documents. It is sent to other processes, so it must pickle; it opens nothing before
    ``documents`` is called. One whose content may move (a branch of a data set) may have a method ``beginning`` too,
    the cursor before its first document, which pins what it stood for.

    Attributes:
        name: short and fit for a file name.
        fingerprint: changes when the documents or their order would.
        skipped: documents passed over because they could not be read, by reason, since the last ``documents()``.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def skipped(self) -> dict[str, int]: ...

    def documents(self, after: Cursor = None) -> Iterator[Document]:
        """The documents that follow the cursor ``after``, in order. Raises UserError for what cannot be read."""
        ...

    def share(self, cursor: Cursor) -> float | None:
        """About which share of the whole lies before a cursor, for progress bars; None where it is not known."""
        ...


def beginning(source: Source) -> Cursor:
    """The cursor before the first document: None, unless the source has one of its own for that."""
    begin = getattr(source, "beginning", None)
    return begin() if begin is not None else None


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turns an OSError of a source into a UserError, lest it be taken for one of the disk that is written to."""
    try:
        yield
    except OSError as error:
        which = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"The source {source.name} cannot be read: {error.strerror or error or type(error).__name__}{which}."
        ) from error


def read_documents(source: Source, after: Cursor = None) -> Iterator[Document]:
    """``source.documents(after)``, with errors of any source as UserError."""
    with reading(source):
        yield from source.documents(after)


RESERVED = ("id", "first", "tokens", "bytes", "source")  # names that the index of a token store has for itself


def check_meta_columns(names: str | Sequence[str]) -> list[str]:
    """The names, or the one name, if documents can carry them. Raises UserError if they cannot."""
    names = [names] if isinstance(names, str) else names
    taken = [name for name in names if name in RESERVED]
    if taken:
        raise UserError(f"data.meta_columns={list(names)}: {', '.join(taken)} means something else here, leave it out.")
    return list(names)


def check_on_error(choice: str) -> str:
    """What to do with what cannot be read, if it is a choice. Raises UserError if it is none."""
    if choice not in ("raise", "skip"):
        raise UserError(f"data.on_error={choice}: choose from raise, skip.")
    return choice


def is_validation(document: Document, fraction: float) -> bool:
    """Whether a document belongs to the validation split: decided by a hash of its content alone.

    Equal texts fall on the same side, whatever their ids, the seed or the order, so no validation text is ever trained
    on.
    """
    content = document.text.encode("utf-8", "surrogatepass") if document.ids is None else document.ids.tobytes()
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
