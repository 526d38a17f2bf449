"""Writing token stores shard by shard. A shard counts once it is whole and the manifest names it, so a writer that is
killed at any moment, or meets a full disk, leaves a store that is true, and goes on where it ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import write_json
from .sources import Document
from .sources.base import Cursor
from .store import FORMAT, MANIFEST, VERSION, read_manifest

FIRST_SHARD_TOKENS, LAST_SHARD_TOKENS = 1 << 20, 1 << 25


def shard_capacity(number: int) -> int:
    """Tokens after which a shard is full: small at first, so that training can begin soon, then doubling up to 32M, so
    that a large store has few files."""
    return min(FIRST_SHARD_TOKENS << min(number, 10), LAST_SHARD_TOKENS)


class Shard:
    """One shard on its way to disk, under temporary names until ``finish``."""

    def __init__(self, folder: Path, name: str, first: int, dtype: np.dtype, eot_id: int) -> None:
        self.folder, self.name, self.first, self.dtype, self.eot_id = folder, name, first, dtype, eot_id
        self.tokens = self.documents = self.text_bytes = 0
        self._digest = hashlib.sha256()
        self._ids = open(self._scratch("bin"), "wb")  # noqa: SIM115 - closed by finish or discard
        self._index = open(self._scratch("jsonl"), "w", encoding="utf-8")  # noqa: SIM115
        if first == 0:
            self._write(np.array([eot_id], dtype=dtype))

    def _scratch(self, suffix: str) -> Path:
        return self.folder / f".{self.name}.{suffix}.tmp"

    def append(self, document: Document, ids: np.ndarray, text_bytes: int) -> None:
        entry = {"id": document.id, "first": self.first + self.tokens - 1, "tokens": len(ids), "bytes": text_bytes}
        self._index.write(json.dumps(document.meta | entry, ensure_ascii=False) + "\n")
        self._write(ids.astype(self.dtype, copy=False))
        self._write(np.array([self.eot_id], dtype=self.dtype))
        self.documents += 1
        self.text_bytes += text_bytes

    def _write(self, ids: np.ndarray) -> None:
        data = np.ascontiguousarray(ids).tobytes()
        self._ids.write(data)
        self._digest.update(data)
        self.tokens += len(ids)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def finish(self) -> dict[str, Any]:
        """Puts the shard in its place; returns its entry for the manifest."""
        for file in (self._ids, self._index):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for suffix in ("jsonl", "bin"):
            os.replace(self._scratch(suffix), self.folder / f"{self.name}.{suffix}")
        return {
            "name": self.name,
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "sha256": self.sha256,
        }

    def discard(self) -> None:
        for file, suffix in ((self._ids, "bin"), (self._index, "jsonl")):
            with contextlib.suppress(OSError):  # closing writes what is buffered, which a full disk refuses
                file.close()
            self._scratch(suffix).unlink(missing_ok=True)


class TokenStoreWriter:
    """Appends documents to a store, new or begun.

    Args:
        path: its folder, made if need be.
        vocab_size: sets the type: uint16 up to 65,536 tokens, else uint32.
        eot_id: the end-of-text token.
        about: what the manifest should say besides, such as fingerprints; a store begun with other values is refused.
        capacity: tokens after which shard n is full.

    Attributes:
        shards: entries of the finished ones. continues_after: the source's cursor after the last of them.
        complete: the store is finished.
    """

    def __init__(
        self,
        path: Path,
        vocab_size: int,
        eot_id: int,
        about: dict[str, Any],
        capacity: Callable[[int], int] = shard_capacity,
    ) -> None:
        self.path, self.eot_id, self.about, self.capacity = path, eot_id, about, capacity
        self.vocab_size = vocab_size
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.shards: list[dict[str, Any]] = []
        self.continues_after: Cursor = None
        self.complete = False
        self.notes: dict[str, Any] = {}  # what the last call of seal noted
        self._shard: Shard | None = None
        path.mkdir(parents=True, exist_ok=True)
        if (path / MANIFEST).exists():
            manifest = read_manifest(path)
            for name, value in about.items():
                if manifest.get(name) != value:
                    raise UserError(f"{path} was begun with {name} {manifest.get(name)}, not {value}: delete it.")
            self.shards, self.complete = manifest["shards"], manifest["complete"]
            self.continues_after, self.notes = manifest["continues_after"], manifest["notes"]
        for left_over in path.glob(".shard_*.tmp"):
            left_over.unlink()

    @property
    def sealed_tokens(self) -> int:
        return sum(shard["tokens"] for shard in self.shards)

    def total(self, name: str) -> int:
        """``tokens``, ``documents`` or ``text_bytes`` so far, the shard being written included."""
        return sum(shard[name] for shard in self.shards) + (getattr(self._shard, name) if self._shard else 0)

    @property
    def is_full(self) -> bool:
        """Whether the shard being written should be sealed."""
        return self._shard is not None and self._shard.tokens >= self.capacity(len(self.shards))

    def append(self, document: Document, ids: np.ndarray, text_bytes: int) -> None:
        """Adds a document with its token ids, without end-of-text; the store adds that."""
        assert not self.complete
        if self._shard is None:
            self._shard = self._open(len(self.shards))
        self._shard.append(document, ids, text_bytes)

    def _open(self, number: int) -> Shard:
        first = sum(shard["tokens"] for shard in self.shards[:number])
        return Shard(self.path, f"shard_{number:05d}", first, self.dtype, self.eot_id)

    def seal(self, after: Cursor, complete: bool = False, notes: dict[str, Any] | None = None) -> None:
        """Finishes the shard being written, if any, and publishes it.

        Args:
            after: the source's cursor after the last document. complete: nothing more will come.
            notes: anything the writer wants to find again.
        """
        if self._shard is not None:
            entry = self._shard.finish()
            self._shard = None
            self.shards.append(entry | {"begins_after": self.continues_after})
        self.continues_after, self.complete, self.notes = after, complete, notes or {}
        self._publish()

    def cut(self, n_shards: int, complete: bool, after: Cursor) -> None:
        """Goes back to the first ``n_shards`` shards."""
        self.shards, self.complete, self.continues_after = self.shards[:n_shards], complete, after
        self._publish()

    def _publish(self) -> None:
        write_json(
            self.path / MANIFEST,
            {
                "format": FORMAT,
                "version": VERSION,
                "complete": self.complete,
                "dtype": self.dtype.str,
                "vocab_size": self.vocab_size,
                "eot_id": self.eot_id,
                "tokens": sum(shard["tokens"] for shard in self.shards),
                "documents": sum(shard["documents"] for shard in self.shards),
                "text_bytes": sum(shard["text_bytes"] for shard in self.shards),
                **self.about,
                "notes": self.notes,
                "continues_after": self.continues_after,
                "shards": self.shards,
            },
        )

    def discard(self) -> None:
        """Drops the shard being written: after an error, or when the writer stops."""
        if self._shard is not None:
            self._shard.discard()
            self._shard = None

    # --- shards dropped to save space, and made again ----------------------------------------------------------------

    def has(self, number: int) -> bool:
        return self._file(number).exists() and self._file(number).with_suffix(".jsonl").exists()

    def drop(self, number: int) -> None:
        """Deletes the tokens of a shard. Its index stays: it is small, and says what the tokens were."""
        self._file(number).unlink(missing_ok=True)

    def begin_again(self, number: int) -> Shard:
        """A shard to fill with the same documents as before; hand it to ``put_back``."""
        return self._open(number)

    def put_back(self, number: int, shard: Shard) -> None:
        """Finishes a shard that was made again. Raises UserError if it is not what it was."""
        if shard.sha256 != self.shards[number]["sha256"]:
            shard.discard()
            raise UserError(
                f"The source of {self.path} has changed: shard {number}, which had been dropped to save space, comes "
                f"out different. Delete {self.path.parent} and start anew."
            )
        shard.finish()

    def bytes_on_disk(self) -> int:
        return sum(self._file(number).stat().st_size for number in range(len(self.shards)) if self.has(number))

    def _file(self, number: int) -> Path:
        return self.path / f"{self.shards[number]['name']}.bin"
