"""The token store: a stream of token ids in memory-mapped shards, under a manifest that is written last.

The stream is ``EOT d1 EOT d2 EOT ...``: every document has the end-of-text token on both sides. Beside each shard lies
a JSON Lines file with the documents that begin in it (id, meta, first token, tokens, bytes), so that what a neuron
fires on can be traced to its article. A folder without a manifest is no store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from ..errors import UserError
from ..files import write_json
from .source import Document

FORMAT = "topklm-token-store"
VERSION = 1
SHARD_TOKENS = 1 << 27  # 256 MB of uint16


class TokenStoreWriter:
    """Appends documents to a new store. Use as a context manager: an error inside removes what was written.

    Args:
        path: folder to create; it must not exist.
        vocab_size: sets the type: uint16 up to 65,536 tokens, else uint32.
        eot_id: the end-of-text token.
        about: what the manifest should say besides: source and tokenizer fingerprints and the like.
        shard_tokens: tokens per shard.
    """

    def __init__(
        self, path: Path, vocab_size: int, eot_id: int, about: dict[str, Any], shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.path, self.eot_id, self.about, self.shard_tokens = path, eot_id, about, shard_tokens
        self.dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
        self.shards: list[dict[str, Any]] = []
        self.tokens = self.documents = self.text_bytes = 0
        self._shard: BinaryIO | None = None
        self._index: TextIO | None = None

    def __enter__(self) -> TokenStoreWriter:
        self.path.mkdir(parents=True)
        self._open_shard()
        self._write(np.array([self.eot_id], dtype=self.dtype))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close_shard()
            write_json(self.path / "manifest.json", self._manifest())
        else:
            for file in (self._shard, self._index):
                if file is not None:
                    file.close()
            shutil.rmtree(self.path, ignore_errors=True)

    def append(self, document: Document, ids: Sequence[int]) -> None:
        """Adds a document with its token ids, without end-of-text; the store adds that."""
        assert self._index is not None
        if self.shards[-1]["tokens"] >= self.shard_tokens:
            self._close_shard()
            self._open_shard()
        text_bytes = len(document.text.encode("utf-8", "surrogatepass"))
        entry = {"id": document.id, "first": self.tokens, "tokens": len(ids), "bytes": text_bytes, **document.meta}
        self._index.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._write(np.array([*ids, self.eot_id], dtype=self.dtype))
        self.documents += 1
        self.text_bytes += text_bytes

    def _open_shard(self) -> None:
        name = f"shard_{len(self.shards):05d}"
        self.shards.append({"name": name, "tokens": 0})
        self._digest = hashlib.sha256()
        self._shard = open(self.path / f"{name}.bin", "wb")  # noqa: SIM115 - closed with the shard
        self._index = open(self.path / f"{name}.jsonl", "w", encoding="utf-8")  # noqa: SIM115

    def _write(self, ids: np.ndarray) -> None:
        assert self._shard is not None
        data = ids.tobytes()
        self._shard.write(data)
        self._digest.update(data)
        self.shards[-1]["tokens"] += len(ids)
        self.tokens += len(ids)

    def _close_shard(self) -> None:
        assert self._shard is not None
        assert self._index is not None
        self._shard.close()
        self._index.close()
        self.shards[-1]["sha256"] = self._digest.hexdigest()

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype.str,
            "eot_id": self.eot_id,
            "tokens": self.tokens,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            **self.about,
            "shards": self.shards,
        }


class TokenStore:
    """A finished store, read through memory maps: opening costs nothing, reading touches only what is asked for.

    Attributes:
        path, manifest: where it lies, and what its manifest says.
        tokens: length of the stream.

    Raises:
        UserError: not a store, made by a newer version, incomplete, or (with ``tokenizer``) written with another
        tokenizer.
    """

    def __init__(self, path: Path, tokenizer: str | None = None) -> None:
        self.path = path
        try:
            self.manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is not a token store ({error}): delete it, and it is made again.") from error
        if self.manifest.get("format") != FORMAT:
            raise UserError(f"{path} is not a token store: its manifest says format {self.manifest.get('format')!r}.")
        if self.manifest["version"] > VERSION:
            raise UserError(
                f"{path} was written by a newer topklm (store version {self.manifest['version']}): update topklm or "
                f"delete it."
            )
        if tokenizer is not None and self.manifest["tokenizer"] != tokenizer:
            raise UserError(
                f"The token store {path} was written with tokenizer {self.manifest['tokenizer']}, not with "
                f"{tokenizer}: use that tokenizer, or another data.cache_dir."
            )
        self.dtype = np.dtype(self.manifest["dtype"])
        self.tokens: int = self.manifest["tokens"]
        for shard in self.manifest["shards"]:
            file = path / f"{shard['name']}.bin"
            size = file.stat().st_size if file.exists() else 0
            if size != shard["tokens"] * self.dtype.itemsize:
                raise UserError(
                    f"{file} holds {size} bytes where its manifest says {shard['tokens'] * self.dtype.itemsize}: "
                    f"delete {path}."
                )

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [
            np.memmap(self.path / f"{shard['name']}.bin", dtype=self.dtype, mode="r")
            for shard in self.manifest["shards"]
        ]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0] + [shard["tokens"] for shard in self.manifest["shards"]])

    def read(self, first: int, count: int) -> np.ndarray:
        """Tokens [first, first + count) of the stream, (count,). They must exist."""
        assert 0 <= first <= first + count <= self.tokens
        shard = min(int(np.searchsorted(self._starts, first, side="right")), len(self._maps)) - 1
        offset = first - int(self._starts[shard])
        part = self._maps[shard][offset : offset + count]
        if len(part) == count:
            return part
        return np.concatenate((part, self.read(first + len(part), count - len(part))))

    def documents(self) -> Iterator[dict[str, Any]]:
        """The documents in order: id, meta, ``first`` (position of the end-of-text before it), ``tokens`` and
        ``bytes``."""
        for shard in self.manifest["shards"]:
            with open(self.path / f"{shard['name']}.jsonl", encoding="utf-8") as lines:
                yield from map(json.loads, lines)

    def verify(self) -> None:
        """Reads every shard and compares checksums. Raises UserError at the first that differs."""
        for shard in self.manifest["shards"]:
            file = self.path / f"{shard['name']}.bin"
            with open(file, "rb") as data:
                if hashlib.file_digest(data, "sha256").hexdigest() != shard["sha256"]:
                    raise UserError(
                        f"{file} has changed since it was written: delete {self.path}, and it is made again."
                    )
