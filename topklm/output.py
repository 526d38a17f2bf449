"""Standard output whose reader may go away, as that of ``| head`` does: then a command ends as by a signal, a run with
a checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


class Output:
    """A text stream. When a write finds that nobody reads it, SIGTERM is raised, once; what is written later is lost.

    Attributes:
        is_broken: whether that has happened.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.is_broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._break()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._break()

    def _break(self) -> None:
        # What is left in the buffer would raise again when the interpreter flushes it at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        self.is_broken = True
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def watched_output() -> Iterator[None]:
    """Standard output as an ``Output``, where there is one."""
    before = sys.stdout
    if before is not None:
        sys.stdout = Output(before)
    try:
        yield
    finally:
        sys.stdout = before


def output_is_broken() -> bool:
    """Whether nobody reads standard output any more."""
    return isinstance(sys.stdout, Output) and sys.stdout.is_broken
