"""Reading a store that may still be written: waits for what is not there yet, tells the writer what is needed, and
notices when it has died."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import write_json
from .background import live_needs, read_status
from .processes import is_alive
from .store import TokenStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
SILENT_SECONDS = 3.0  # of waiting before a word is said
EVERYTHING = 1 << 62  # tokens: more than any store has
DEAD_SECONDS = 10.0  # so long a dead writer is given to be followed by another run's


class StoreReader:
    """A training store as one process reads it, growing or complete.

    Args:
        store: the store. check: raises UserError if the writer has died; where it is not known (in a loader's worker,
            on another rank), None, and ``writer.json`` tells.
    """

    def __init__(self, store: TokenStore, check: Callable[[], None] | None = None) -> None:
        self.store, self._check, self._owner = store, check, os.getpid()
        self._pid: int | None = None
        self._need = (-1, -1)
        self._path: Path | None = None
        self._dead_since: float | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_check": None}  # processes do not travel

    def wait_for(self, first: int, stop: int) -> bool:
        """Waits until tokens [first, stop) of the stream are written; returns False if it is complete with fewer."""
        if self.store.tokens < stop and not self.store.complete:
            self._say(first, stop)
            self._wait(lambda: self.store.tokens >= stop or self.store.complete)
        return self.store.tokens >= stop

    def wait_until_complete(self) -> None:
        """Waits until the store is complete."""
        self.store.refresh()
        if not self.store.complete:
            self._say(0, EVERYTHING)
            self._wait(lambda: self.store.complete)

    def read(self, first: int, count: int) -> np.ndarray:
        """Tokens [first, first + count), once the files that hold them are there: a writer may have dropped them to
        save space, and makes them again."""
        self._say(first, first + count)
        while True:
            for number in self.store.shards_of(first, first + count):
                self._wait(self.store.file(number).exists)
            try:
                return self.store.read(first, count)
            except FileNotFoundError:  # dropped before the writer had read what is needed here
                continue

    def forget(self) -> None:
        """Takes back what this process said it needs: it will not read again."""
        if self._path is not None:
            with contextlib.suppress(OSError):  # a read-only file system refuses even what is not there
                self._path.unlink(missing_ok=True)
        self._need, self._path = (-1, -1), None

    def _wait(self, arrived: Callable[[], bool]) -> None:
        parent, patience = os.getppid(), time.monotonic() + SILENT_SECONDS
        while not arrived():
            self._check_writer()
            if time.monotonic() > patience:
                log.info("waiting for data: %s tokens are written so far", f"{self.store.tokens:,}")
                patience = float("inf")
            if os.getppid() != parent:
                os._exit(1)  # a loader's worker whose run was killed
            time.sleep(POLL_SECONDS)
            self.store.refresh()
        self._dead_since = None

    def _check_writer(self) -> None:
        if self._check is not None and os.getpid() == self._owner:  # not in a fork
            self._check()
            return
        status = read_status(self.store.path.parent)
        if status.get("host", socket.gethostname()) != socket.gethostname():
            return  # the process that started the writer is told
        if status and is_alive(status["pid"]):
            self._dead_since = None
            return
        self._dead_since = self._dead_since or time.monotonic()
        if time.monotonic() - self._dead_since > DEAD_SECONDS:
            raise UserError(
                status.get("error")
                or f"The process that writes the token store {self.store.path.parent} has died. "
                f"What it wrote is kept: continue with run=DIR."
            )

    def _say(self, first: int, stop: int) -> None:
        """Leaves word of what this process needs, in a file of its own; other words of it are then out of date."""
        if (first, stop) == self._need and self._pid == os.getpid():
            return
        self._need, self._pid = (first, stop), os.getpid()
        folder: Path = self.store.path.parent / "readers"
        host = socket.gethostname()
        with contextlib.suppress(OSError):  # read-only caches are complete, and need nobody to know
            folder.mkdir(exist_ok=True)
            live_needs(folder.parent)  # which sweeps out what the dead have left
            who = {"host": host, "pid": self._pid, "store": self.store.path.name}
            self._path = folder / f"{host}-{self._pid}-{self.store.path.name}.json"
            write_json(self._path, {**who, "first": first, "stop": stop})
