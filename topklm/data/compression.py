"""How well xz compresses the validation text: a yardstick in bits per byte that needs no neural network.

``plain`` compresses the validation text alone. ``primed`` lets xz use the training text as its dictionary: the size of
both together minus the size of the training text. A language model that saw the training text should beat the second
figure.
"""

from __future__ import annotations

import json
import logging
import lzma
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..files import write_json
from .store import TokenStore
from .tokenizer import Tokenizer

log = logging.getLogger(__name__)

# xz -9e has a 64 MiB dictionary: with more text than that the primed figure would mean something else.
MAX_BYTES = 1 << 26
SILENT_MEGABYTES = 10  # are soon compressed


def xz_bits_per_byte(train: list[str], validation: list[str]) -> dict[str, float] | None:
    """``{"plain": ..., "primed": ...}``, bits per byte of the validation text under ``xz -9e``; None above 64 MiB of
    text.

    Documents are joined by a newline.
    """
    train_bytes, validation_bytes = ("\n".join(texts).encode("utf-8", "surrogatepass") for texts in (train, validation))
    if len(train_bytes) + len(validation_bytes) > MAX_BYTES or not validation_bytes:
        return None

    def size(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    with ThreadPoolExecutor(2) as pool:  # lzma lets go of the interpreter lock
        alone, known, both = pool.map(size, (validation_bytes, train_bytes, train_bytes + b"\n" + validation_bytes))
    return {"plain": 8 * alone / len(validation_bytes), "primed": 8 * (both - known) / len(validation_bytes)}


def xz_of_stores(
    path: Path, train: TokenStore, validation: TokenStore, tokenizer: Tokenizer
) -> dict[str, float] | None:
    """The same of two complete stores, computed once and kept in the file ``path``. The source is not read again: it
    may be far away, and the stores have its text."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    if train.manifest["text_bytes"] + validation.manifest["text_bytes"] > MAX_BYTES:
        return None
    megabytes = (train.manifest["text_bytes"] + validation.manifest["text_bytes"]) / 1e6
    if megabytes > SILENT_MEGABYTES:
        log.info("compressing %.0f MB of text with xz, for comparison: a minute or two, once", megabytes)
    figures = xz_bits_per_byte(*(list(_texts(store, tokenizer)) for store in (train, validation)))
    try:
        write_json(path, figures)
    except OSError as error:  # a full disk, or a cache that others keep: next time they are computed again
        log.info("what xz reaches is not kept: %s cannot be written (%s)", path, error.strerror or error)
    return figures


def _texts(store: TokenStore, tokenizer: Tokenizer) -> Iterator[str]:
    """The texts of a store's documents: a byte-level tokenizer gives them back as they were."""
    ids = store.read(0, store.tokens)
    for document in store.documents():
        first = document["first"] + 1
        yield tokenizer.decode(ids[first : first + document["tokens"]].tolist())
