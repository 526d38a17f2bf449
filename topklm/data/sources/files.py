"""Text files on disk: .txt and .md (a document each), .jsonl (plain, .gz or .zst: a document a line), .parquet (a
document a row)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...errors import UserError
from .base import Cursor, Document, check_meta_columns, check_on_error
from .paths import files_fingerprint, find_files, short_names

PARQUET_ROWS = 256  # read at once
Place = list[int]  # after a row of a file: rows up to and including it; in a plain .jsonl also bytes up to its end
Row = tuple[Place, dict[str, Any]]  # and what the row holds
BEGINNING: Place = [0, 0]


class Files:
    """Documents of local files, in the order of the files' paths.

    Args:
        paths: files, folders or glob patterns.
        text_column: the field of a JSON line or the column of a Parquet file that holds the text.
        meta_columns: fields to keep with each document, such as a title.
        on_error: ``raise``, or ``skip`` to pass over and count what cannot be read: a file, the rest of a file cut
            short, a line, a row.

    Raises:
        UserError: no such file, or of another kind.
    """

    name = "files"

    def __init__(
        self,
        paths: str | Sequence[str],
        text_column: str = "text",
        meta_columns: Sequence[str] = (),
        on_error: str = "raise",
    ) -> None:
        self.on_error, self.meta_columns = check_on_error(on_error), check_meta_columns(meta_columns)
        self.files = find_files(paths, "data.paths")
        self.text_column = text_column
        self.skipped: dict[str, int] = {}
        for path in self.files:
            _reader(path)
        self._names = short_names(self.files)

    @cached_property
    def fingerprint(self) -> str:
        """Whatever ``on_error`` says: what was written before an error stands when a run goes on and passes over it."""
        files = files_fingerprint(self.files, skip_unreadable=self.on_error == "skip")
        settings = [self.text_column, self.meta_columns, files]
        return hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()

    def documents(self, after: Cursor = None) -> Iterator[Document]:
        """A cursor is [number of the file, rows of it already read], and in a plain .jsonl also how many bytes these
        are, so that going on need not look for the row."""
        self.skipped = {}
        first, *done = after or (0, *BEGINNING)
        for number, path in enumerate(self.files[first:], start=first):
            try:
                for place, record in _reader(path)(self, path, done):
                    document = self._document(path, number, place, record)
                    if document is not None:
                        yield document
            except (OSError, EOFError, zlib.error, ValueError) as error:
                if isinstance(error, UserError):
                    raise
                self.fail("file", f"{path} cannot be read to its end: {str(error).rstrip('.') or type(error).__name__}")
            done = BEGINNING

    def share(self, cursor: Cursor) -> float | None:
        number, _, inside = (*(cursor or (0, 0)), 0)[:3]
        return (self._bytes_before[number] + inside) / max(1, self._bytes_before[-1])

    @cached_property
    def _bytes_before(self) -> list[int]:
        """Bytes before each file, and in all; one that is gone has none."""
        return list(accumulate((path.stat().st_size if path.exists() else 0 for path in self.files), initial=0))

    def fail(self, kind: str, what: str) -> None:
        """Raises, or counts what is passed over."""
        if self.on_error == "raise":
            raise UserError(f"{what}. Mend it, or pass over the like of it with data.on_error=skip.")
        self.skipped[kind] = self.skipped.get(kind, 0) + 1

    def _document(self, path: Path, number: int, place: Place, record: dict[str, Any]) -> Document | None:
        row = place[0]
        text = record.get(self.text_column)
        if not isinstance(text, str):
            fields = ", ".join(record) or "none"
            if self.text_column not in record:
                found = f"no field {self.text_column}"
            else:
                found = f"{_kind(text)}, not text, in {self.text_column}"
            self.fail("row", f"{path}, row {row}: {found} (its fields: {fields}; choose one with data.text_column)")
            return None
        meta = {name: _printable(record[name]) for name in self.meta_columns if record.get(name) is not None}
        return Document(f"{self._names[number]}:{row}", text, meta, cursor=[number, *place])

    def _whole(self, path: Path, done: Place) -> Iterator[Row]:
        if done[0]:
            return
        try:
            text = path.read_bytes().decode("utf-8-sig")  # some editors begin with a byte-order mark
        except UnicodeDecodeError as error:
            self.fail("non-UTF-8 file", f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}")
            return
        yield [1], {self.text_column: text}

    def _lines(self, path: Path, done: Place) -> Iterator[Row]:
        plain = path.suffix.lower() == ".jsonl"  # elsewhere a byte cannot be found without unpacking all before it
        with _open(path) as file:
            if plain and len(done) == 2:
                before, offset = done
                file.seek(offset)
            else:
                before = done[0]
                offset = sum(map(len, islice(file, before)))
            for row, line in enumerate(file, start=before + 1):
                offset += len(line)
                if not line.strip():
                    continue
                try:
                    record = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
                    if not isinstance(record, dict):
                        raise ValueError(f"{_kind(record)}, not an object with fields")
                except UnicodeDecodeError as error:
                    self.fail("non-UTF-8 line", f"{path}, line {row}: byte {error.start} is not UTF-8")
                except json.JSONDecodeError as error:
                    self.fail("line", f"{path}, line {row}: not JSON ({error.msg}, column {error.pos + 1})")
                except (ValueError, RecursionError) as error:
                    self.fail("line", f"{path}, line {row}: not JSON ({error})")
                else:
                    yield [row, offset] if plain else [row], record

    def _parquet(self, path: Path, done: Place) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                columns = file.schema_arrow.names
                wanted = list(dict.fromkeys((self.text_column, *self.meta_columns)))
                for name in wanted:
                    if name not in columns:
                        setting = "data.text_column" if name == self.text_column else "data.meta_columns"
                        raise UserError(f"{path} has no column {name}: choose {setting} from {', '.join(columns)}.")
                row = 0
                for group in range(file.num_row_groups):
                    size = file.metadata.row_group(group).num_rows
                    if row + size <= done[0]:
                        row += size
                        continue
                    for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=wanted):
                        for record in batch.to_pylist():
                            row += 1
                            if row > done[0]:
                                yield [row], record
        except pyarrow.ArrowException as error:
            raise OSError(str(error).splitlines()[0]) from error


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _printable(value: Any) -> str:
    """As text that can be written anywhere: JSON may hold halves of characters (lone surrogates)."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _open(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 20))
    return open(path, "rb")


READERS: dict[str, Callable[[Files, Path, Place], Iterator[Row]]] = {
    ".txt": Files._whole,
    ".md": Files._whole,
    ".jsonl": Files._lines,
    ".jsonl.gz": Files._lines,
    ".jsonl.zst": Files._lines,
    ".parquet": Files._parquet,
}


def _reader(path: Path) -> Callable[[Files, Path, Place], Iterator[Row]]:
    for suffix, reader in READERS.items():
        if path.name.lower().endswith(suffix):
            return reader
    raise UserError(f"{path} is none of {', '.join(READERS)}: narrow data.paths to such files.")
