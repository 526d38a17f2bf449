"""Documents to token ids, in order, on one process or several.

A long text is encoded in pieces, cut before a single space between two letters: byte-level tokenizers split words there
anyway (GPT-2's pattern and its descendants), so the ids are those of the whole text, and a document of any size needs
little memory and keeps all processes busy.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np

from ..errors import UserError
from .processes import die_with_parent, no_inner_threads
from .sources import Document
from .tokenizer import Tokenizer

PIECE = 1 << 18  # characters
BATCH = 1 << 20  # characters per task
PATIENCE = 0.2  # seconds: what a slow source has brought by then is not kept waiting for more
AHEAD = 3  # tasks under way per process
WORD = re.compile(r"[^\W\d_](?= [^\W\d_])")  # a letter, then one space, then a letter

Task = list[tuple[Document, str, bool]]  # document, piece of its text, whether it is the last piece


def split_text(text: str) -> Iterator[str]:
    """Pieces of a text, of about PIECE characters; the whole where it is short."""
    first = 0
    while len(text) - first > 2 * PIECE:
        cut = WORD.search(text, first + PIECE, first + 2 * PIECE)
        stop = cut.end() if cut else first + 2 * PIECE  # nothing like a word in sight: anywhere
        yield text[first:stop]
        first = stop
    yield text[first:]


class Encoder:
    """Turns documents into token ids, in the order they come.

    Args:
        processes: 0 encodes here, on all cores; 1 here, on one core; more starts so many processes, at first use.
    """

    def __init__(self, tokenizer: Tokenizer, processes: int = 0) -> None:
        self.tokenizer, self.processes = tokenizer, processes
        self._pool: ProcessPoolExecutor | None = None

    def encode(self, documents: Iterable[Document]) -> Generator[tuple[Document, np.ndarray]]:
        """Each document with its token ids, (n,) uint32. Several such streams may be under way at once."""
        parts: list[np.ndarray] = []
        for task, ids in self._here(documents) if self.processes <= 1 else self._elsewhere(documents):
            for (document, _, is_last), piece_ids in zip(task, ids, strict=True):
                parts.append(piece_ids)
                if is_last:
                    given = document.ids
                    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
                    yield document, whole if given is None else given
                    parts = []

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _here(self, documents: Iterable[Document]) -> Iterator[tuple[Task, list[np.ndarray]]]:
        if self.processes == 1:
            no_inner_threads()
        for task in _tasks(documents):
            yield task, self.tokenizer.encode_arrays([piece for _, piece, _ in task])

    def _elsewhere(self, documents: Iterable[Document]) -> Iterator[tuple[Task, list[np.ndarray]]]:
        if self._pool is None:
            inner = self.tokenizer.inner
            how = (inner.to_str(), inner.id_to_token(self.tokenizer.eot_id))
            self._pool = ProcessPoolExecutor(self.processes, get_context("spawn"), _start_worker, how)
        under_way: deque[tuple[Task, Future[tuple[np.ndarray, np.ndarray]]]] = deque()
        broken: UserError | None = None
        try:
            try:
                for task in _tasks(documents):
                    under_way.append((task, self._pool.submit(_encode, [piece for _, piece, _ in task])))
                    while under_way and (under_way[0][1].done() or len(under_way) >= AHEAD * self.processes):
                        yield _result(*under_way.popleft())
            except UserError as error:
                broken = error
            while under_way:
                yield _result(*under_way.popleft())
            if broken is not None:
                raise broken
        finally:
            for _, future in under_way:
                future.cancel()


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, processes: int = 0
) -> Generator[tuple[Document, np.ndarray]]:
    """One stream of an ``Encoder``."""
    with Encoder(tokenizer, processes) as encoder:
        yield from encoder.encode(documents)


def count_bytes(document: Document, ids: np.ndarray, tokenizer: Tokenizer) -> int:
    """Bytes of UTF-8 that a document's tokens stand for. Raises UserError if it came with tokens of another
    tokenizer."""
    if document.ids is None:
        return document.size
    if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
        raise UserError(
            f"{document.id} holds the token {int(ids.max())}, but the tokenizer has {tokenizer.vocab_size} tokens: "
            f"choose the tokenizer that these tokens were made with."
        )
    return int(tokenizer.byte_lengths()[ids].sum())


def _tasks(documents: Iterable[Document]) -> Iterator[Task]:
    task: Task = []
    size, began = 0, time.monotonic()
    try:
        for document in documents:
            done = 0
            size += 100 if document.ids is None else 100 + len(document.ids)  # an empty text costs something, too
            for piece in split_text(document.text):
                done += len(piece)
                task.append((document, piece, done == len(document.text)))
                size += len(piece)
                if size >= BATCH or time.monotonic() > began + PATIENCE:
                    yield task
                    task, size, began = [], 0, time.monotonic()
    except UserError:  # what came before a source broke is encoded first: it may fill a shard, which is then kept
        if task:
            yield task
        raise
    if task:
        yield task


def _result(task: Task, future: Future[tuple[np.ndarray, np.ndarray]]) -> tuple[Task, list[np.ndarray]]:
    try:
        ids, lengths = future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "A tokenizing process was killed (the system does so when memory runs out): use fewer of them. "
            "Finished shards are kept, and the next call goes on after them."
        ) from error
    return task, np.split(ids, np.cumsum(lengths)[:-1])


_tokenizer: Tokenizer | None = None  # of a worker process


def _start_worker(tokenizer_json: str, end_of_text: str | None) -> None:
    global _tokenizer
    die_with_parent()
    no_inner_threads()
    _tokenizer = Tokenizer.from_json(tokenizer_json, end_of_text=end_of_text)


def _encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All ids in one row, and how many belong to each text: two arrays travel between processes faster than many."""
    assert _tokenizer is not None
    arrays = _tokenizer.encode_arrays(texts)
    return np.concatenate(arrays), np.array([len(array) for array in arrays])
