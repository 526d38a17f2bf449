"""From a source to two token stores: split, train a tokenizer, tokenize; once per choice, cached on disk, shared by
all runs.

The cache folder of a choice (source, validation share, tokenizer) holds ``tokenizer.json``, ``train/``,
``validation/`` and ``about.json``. A lock lets one process make it while others wait. It is built under another name
and renamed when whole, so that a crash leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..errors import UserError
from ..files import disk_errors, write_json
from .compression import xz_bits_per_byte
from .source import Document, Source, is_validation
from .store import TokenStore, TokenStoreWriter
from .tokenizer import Tokenizer

LAYOUT = 1  # raise when a change of this code changes what the cache holds
ENCODE_BATCH = 1000  # documents per call of the tokenizer, which spreads them over the cores


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer: one trained on the training split, or one from a file.

    Attributes:
        vocab_size: tokens of the byte-level BPE to train. Not used with ``path``.
        path: a ``tokenizer.json`` to use instead.
    """

    vocab_size: int = 4096
    path: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size < 257:
            raise ValueError(
                f"tokenizer.vocab_size={self.vocab_size}: 256 bytes and the end-of-text token need 257 or more."
            )


@dataclass(frozen=True)
class Prepared:
    """What training needs of the data.

    Attributes:
        tokenizer: encodes and decodes. train, validation: the stores.
        fingerprint: of source, split and tokenizer together.
        xz: bits per byte of ``xz -9e`` on the validation text, ``plain`` and ``primed`` (see compression.py); None for
            large text.
    """

    tokenizer: Tokenizer
    train: TokenStore
    validation: TokenStore
    fingerprint: str
    xz: dict[str, float] | None


def prepare(source: Source, config: TokenizerConfig, val_fraction: float, cache_dir: str | Path) -> Prepared:
    """Opens the cached stores of this choice, and makes them first if they are not there.

    Raises:
        UserError: the source is empty or one split is; the disk is full; the cache is damaged.
    """
    given = Tokenizer.load(config.path) if config.path else None
    choice = [LAYOUT, source.fingerprint, val_fraction, given.fingerprint if given else config.vocab_size]
    fingerprint = hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:12]
    kind = "file" if given else f"bpe{config.vocab_size}"
    folder = Path(cache_dir) / f"{source.name}-{kind}-{fingerprint}"
    with disk_errors(folder, "Free some space, or choose another place with data.cache_dir=..."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                _build(folder, source, given, config, val_fraction)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    stores = [TokenStore(folder / split, tokenizer.fingerprint) for split in ("train", "validation")]
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return Prepared(tokenizer, stores[0], stores[1], fingerprint, about["xz"])


def _build(folder: Path, source: Source, given: Tokenizer | None, config: TokenizerConfig, val_fraction: float) -> None:
    documents = [document for document in source.documents() if document.text.strip()]
    if not documents:
        raise UserError(f"The source {source.name} holds no text: nothing to train on.")
    train = [document for document in documents if not is_validation(document, val_fraction)]
    validation = [document for document in documents if is_validation(document, val_fraction)]
    for name, split in (("training", train), ("validation", validation)):
        if not split:
            raise UserError(
                f"data.val_fraction={val_fraction} leaves the {name} split of {source.name} empty ({len(documents)} "
                f"documents): change it."
            )
    train_texts = [document.text for document in train]
    tokenizer = given or Tokenizer.train(train_texts, config.vocab_size)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir()
        tokenizer.save(scratch / "tokenizer.json")
        about = {"source": source.name, "source_fingerprint": source.fingerprint, "tokenizer": tokenizer.fingerprint}
        for name, split in (("train", train), ("validation", validation)):
            _write(scratch / name, split, tokenizer, about | {"split": name, "val_fraction": val_fraction})
        xz = xz_bits_per_byte(train_texts, [document.text for document in validation])
        write_json(scratch / "about.json", about | {"xz": xz})
        os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(path: Path, documents: Sequence[Document], tokenizer: Tokenizer, about: dict[str, object]) -> None:
    with TokenStoreWriter(path, tokenizer.vocab_size, tokenizer.eot_id, about) as writer:
        for first in range(0, len(documents), ENCODE_BATCH):
            batch = documents[first : first + ENCODE_BATCH]
            for document, ids in zip(batch, tokenizer.encode([document.text for document in batch]), strict=True):
                writer.append(document, ids)
