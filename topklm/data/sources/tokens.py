"""Token ids that were made elsewhere: .npy arrays, raw .bin files (nanoGPT's) and .bin files with a header
(llm.c's)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from ...errors import UserError
from .base import Cursor, Document
from .paths import files_fingerprint, find_files, short_names

# llm.c: 256 little-endian int32 of header (magic, version, number of tokens), then the tokens.
HEADER_BYTES = 1024
MAGICS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
SCAN = 1 << 22  # tokens looked through at once for the end of a document


class Tokens:
    """Documents of arrays of token ids, cut at the end-of-text token. The tokenizer must be the one that made them.

    Args:
        paths: .npy or .bin files, folders or glob patterns.
        eot_id: the end-of-text token in these files (GPT-2's is 50256).
        dtype: type of raw .bin files, ``uint16`` or ``uint32``. Files with a header, and .npy, say it themselves.
    """

    name = "tokens"

    def __init__(self, paths: str | Sequence[str], eot_id: int = 50256, dtype: str = "uint16") -> None:
        if dtype not in ("uint16", "uint32"):
            raise UserError(f"data.dtype={dtype}: choose from uint16, uint32.")
        self.files = find_files(paths, "data.paths")
        for path in self.files:
            if path.suffix not in (".npy", ".bin"):
                raise UserError(f"{path} is neither .npy nor .bin: narrow data.paths to such files.")
        self.eot_id, self.dtype = eot_id, dtype
        self.skipped: dict[str, int] = {}

    @cached_property
    def fingerprint(self) -> str:
        settings = [self.eot_id, self.dtype, files_fingerprint(self.files)]
        return hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()

    def documents(self, after: Cursor = None) -> Iterator[Document]:
        """A cursor is [number of the file, tokens of it already read]."""
        names = short_names(self.files)
        first_file, done = after or (0, 0)
        for number, path in enumerate(self.files[first_file:], start=first_file):
            ids = self._open(path)
            for first, stop in self._spans(ids, done):
                cursor = [number, min(stop + 1, len(ids))]
                yield Document(f"{names[number]}:{first}", "", cursor=cursor, ids=np.array(ids[first:stop]))
            done = 0

    def share(self, cursor: Cursor) -> float | None:
        number, read = cursor or (0, 0)
        return (self._tokens_before[number] + read) / max(1, self._tokens_before[-1])

    @cached_property
    def _tokens_before(self) -> list[int]:
        """Tokens before each file, and in all."""
        return list(accumulate((len(self._open(path)) for path in self.files), initial=0))

    def _spans(self, ids: np.ndarray, first: int) -> Iterator[tuple[int, int]]:
        """Documents that are not empty, as [first, stop)."""
        for begin in range(first, len(ids), SCAN):
            for end in begin + np.flatnonzero(ids[begin : begin + SCAN] == self.eot_id):
                if end > first:
                    yield first, int(end)
                first = int(end) + 1
        if first < len(ids):
            yield first, len(ids)

    def _open(self, path: Path) -> np.ndarray:
        try:
            if path.suffix == ".npy":
                ids = np.lib.format.open_memmap(path, mode="r")
            else:
                head = np.fromfile(path, dtype="<i4", count=3)
                known = MAGICS.get((int(head[0]), int(head[1]))) if len(head) == 3 else None
                dtype, offset = (known, HEADER_BYTES) if known else (self.dtype, 0)
                if (path.stat().st_size - offset) % np.dtype(dtype).itemsize or path.stat().st_size == offset:
                    raise ValueError(f"its size is no multiple of {dtype}, or it is empty")
                ids = np.memmap(path, dtype=dtype, mode="r", offset=offset)
                if known and len(ids) != head[2]:
                    raise ValueError(f"its header says {head[2]} tokens, but it holds {len(ids)}")
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as tokens: {error}.") from error
        if ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
            raise UserError(f"{path} holds {ids.dtype} of shape {ids.shape}: give one row of uint16 or uint32.")
        return ids
