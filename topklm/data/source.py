"""Where text comes from: a source yields documents in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Document:
    """One text with a name.

    Attributes:
        id: unique within its source, stable over runs.
        text: what is trained on.
        meta: what is known of it besides, such as title, topic and language.
    """

    id: str
    text: str
    meta: dict[str, str] = field(default_factory=dict)


class Source(Protocol):
    """Anything that yields documents.

    Attributes:
        name: short and fit for a file name.
        fingerprint: changes when the documents or their order would.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def documents(self) -> Iterator[Document]: ...


def is_validation(document: Document, fraction: float) -> bool:
    """Whether a document belongs to the validation split: decided by a hash of its text alone.

    Equal texts fall on the same side, whatever their ids, the seed or the order, so no validation text is ever trained
    on.
    """
    digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
