"""Data sets of the Hugging Face hub, streamed or downloaded, through the ``datasets`` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import UserError
from .base import Cursor, Document, check_meta_columns, check_on_error
from .paths import files_fingerprint, find_files

HUB_SECONDS = 10.0  # to wait for the name of a commit


class Hub:
    """Documents of one split of a data set, in its own order. It is never shuffled here: the order of training is made
    from the token store.

    Args:
        path: name on the hub, a local folder, or a format such as ``json`` or ``parquet`` with ``data_files``.
        config, split, revision: as in ``datasets.load_dataset``. A token store goes on with the commit that the
            revision named when it was begun; pin a commit where other machines must get the same.
        data_files: files to read, as in ``load_dataset``.
        text_column: the column that holds the text. meta_columns: columns to keep with each document.
        streaming: read over the network as training goes; False downloads the data set first.
        on_error: ``raise``, or ``skip`` to pass over and count rows without text.
    """

    def __init__(
        self,
        path: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
        text_column: str = "text",
        meta_columns: Sequence[str] = (),
        streaming: bool = True,
        on_error: str = "raise",
    ) -> None:
        self.path, self.config, self.split, self.revision = path, config, split, revision
        self.data_files, self.text_column, self.meta_columns = data_files, text_column, check_meta_columns(meta_columns)
        self.streaming, self.on_error = streaming, check_on_error(on_error)
        self.skipped: dict[str, int] = {}
        self._pinned: str | None = None
        self.name = "hub-" + "".join(c if c.isalnum() else "-" for c in Path(path).name)[:40]

    @cached_property
    def fingerprint(self) -> str:
        """Of the choice, and of the files themselves where they are local; the hub is not asked, so that a finished
        token store can be used without a network."""
        choice = [self.path, self.config, self.split, self.revision, self.data_files, self.text_column]
        # Both, since a folder may have the name of a format. What is not here are names in a data set on the hub.
        for local in ([self.path] if Path(self.path).exists() else [], _patterns(self.data_files)):
            with suppress(UserError):
                choice.append(files_fingerprint(find_files(local, "data.data_files")))
        settings = [*choice, self.meta_columns]
        return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()

    def beginning(self) -> Cursor:
        """The cursor before the first document: it pins the revision, where the hub says which that is."""
        commit = self._commit()
        return {"row": 0, "revision": commit} if commit else None

    def documents(self, after: Cursor = None) -> Iterator[Document]:
        """A cursor is a number of rows; or it holds that number (``row``) and what else is known: the commit that the
        rows are of (``revision``), and where a stream stands: the shard (a file, mostly) that the last row came from,
        how many of its rows have been read, and the number of shards (``shard``)."""
        self.skipped = {}
        start: dict[str, Any] = after if isinstance(after, dict) else {"row": after or 0}
        self._pinned = start.get("revision") or self._pinned
        commit, row, shard = self._commit(), start["row"], start.get("shard")
        rows = self._stream(row, shard) if self.streaming else self._downloaded(row)
        while True:
            try:
                shard, record = next(rows, (None, None))
            except Exception as error:  # whatever the network, the file system or a decoder may raise on the way
                raise self._unreachable(error) from error
            if record is None:
                return
            row += 1
            text = record.get(self.text_column)
            if isinstance(text, str):
                meta = {name: str(record[name]) for name in self.meta_columns if record.get(name) is not None}
                known = {"shard": shard, "revision": commit}
                known = {name: value for name, value in known.items() if value is not None}
                yield Document(f"{self.split}:{row}", text, meta, cursor={"row": row} | known if known else row)
                continue
            if self.text_column not in record:
                raise UserError(
                    f"The data set {self.path} has no column {self.text_column}: choose data.text_column from "
                    f"{', '.join(record)}."
                )
            if self.on_error == "raise":
                raise UserError(
                    f"The data set {self.path} has no text in row {row}: pass over such rows with data.on_error=skip."
                )
            self.skipped["row"] = self.skipped.get("row", 0) + 1

    def share(self, cursor: Cursor) -> float | None:
        """A stream knows its shards and not their lengths."""
        if not isinstance(cursor, dict) or "shard" not in cursor:
            return None
        number, _, of = cursor["shard"]
        return number / of

    def _downloaded(self, row: int) -> Iterator[tuple[None, dict[str, Any]]]:
        found = self._load()
        for record in found.skip(row) if row < len(found) else ():  # it cannot skip all its rows
            yield None, record

    def _stream(self, row: int, shard: list[int] | None) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Rows after the first ``row``, each with its place: shard, rows of it up to this one, number of shards.

        One shard after another, since ``skip`` on the whole stream would read all that went before. A cursor without
        a place, or of another cut into shards, costs just that.
        """
        found = self._load()
        n_shards = found.num_shards
        first, done, pass_over = (*shard[:2], 0) if shard and shard[2] == n_shards else (0, 0, row)
        for number in range(first, n_shards):
            part = found.shard(num_shards=n_shards, index=number)
            for inside, record in enumerate(part.skip(done) if done else part, start=done + 1):
                if pass_over:
                    pass_over -= 1
                else:
                    yield [number, inside, n_shards], record
            done = 0

    def _load(self) -> Any:
        import datasets  # here, because it takes most of a second to import

        datasets.disable_progress_bars()
        revision = self._pinned or self.revision
        options: dict[str, Any] = {"split": self.split, "revision": revision, "data_files": self.data_files}
        return datasets.load_dataset(self.path, self.config, streaming=self.streaming, **options)

    def _commit(self) -> str | None:
        """The commit that is read, so that one token store never mixes two: that of a cursor, or the one which
        ``revision`` names when it is first asked for. None where the hub does not answer, or it is no data set of the
        hub."""
        if self._pinned is None and self._is_on_hub():
            import huggingface_hub

            with suppress(Exception):  # of the network, of permissions: reading meets it too, and tells
                found = huggingface_hub.dataset_info(self.path, revision=self.revision, timeout=HUB_SECONDS)
                self._pinned = found.sha
        return self._pinned

    def _is_on_hub(self) -> bool:
        """Whether ``load_dataset`` will look for it on the hub: it is neither a format nor a folder here."""
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        return self.path not in _PACKAGED_DATASETS_MODULES and not Path(self.path).exists()

    def _unreachable(self, error: Exception) -> UserError:
        if isinstance(error, UserError):
            return error
        if type(error).__name__ == "DatasetGenerationError" and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the library's own sentence only says that something went wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return UserError(
            f"The data set {self.path} cannot be read ({type(error).__name__}: {reason}): check data.path, "
            f"data.config, data.split and the network. Finished shards are kept, and the next run goes on after them."
        )


def _patterns(data_files: Any) -> list[str]:
    """All names in ``data_files``, which may be one, a list, or lists by split."""
    if data_files is None or isinstance(data_files, str):
        return [data_files] if data_files else []
    values = data_files.values() if isinstance(data_files, Mapping) else data_files
    return [name for value in values for name in _patterns(value)]
