"""Reading a store that may still be written: waits for what is not there yet, tells the writer what is needed, and
notices when it has died."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import UserError
from .background import read_status
from .presence import Presence, present
from .store import TokenStore

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
SILENT_SECONDS = 3.0  # of waiting before a word is said
EVERYTHING = 1 << 62  # tokens: more than any store has
LOOK_SECONDS = 1.0  # between looks whether a writer lives
DEAD_SECONDS = 5.0  # so long a dead writer is given to be followed by another run's


class StoreReader:
    """A training store as one process reads it, growing or complete.

    Args:
        store: the store. check: raises UserError if the writer has died; where it is not known (in a loader's worker,
            on another rank), None, and the writer's files tell.
    """

    def __init__(self, store: TokenStore, check: Callable[[], None] | None = None) -> None:
        self.store, self._check, self._owner = store, check, os.getpid()
        self._need = (-1, -1)
        self._presence: Presence | None = None
        self._dead_since: float | None = None
        self._looked = 0.0

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_check": None, "_presence": None}  # processes do not travel

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
        return self.gather([first], [count])

    def gather(self, firsts: Sequence[int] | np.ndarray, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tokens of several stretches, one after the other, see ``TokenStore.gather``; waits as ``read`` does."""
        first = int(np.min(firsts))
        stop = int(np.max(np.add(firsts, counts)))
        self._say(first, stop)
        while True:
            for number in self.store.shards_of(first, stop):
                self._wait(self.store.file(number).exists)
            try:
                return self.store.gather(firsts, counts)
            except FileNotFoundError:  # dropped before the writer had read what is needed here
                continue

    def forget(self) -> None:
        """Takes back what this process said it needs: it will not read again."""
        if self._presence is not None and self._presence.pid == os.getpid():
            self._presence.leave()
        self._need, self._presence = (-1, -1), None

    def _wait(self, arrived: Callable[[], bool]) -> None:
        is_worker = multiprocessing.parent_process() is not None  # a run outlives the shell that it was started from
        parent, patience = os.getppid(), time.monotonic() + SILENT_SECONDS
        while not arrived():
            self._check_writer()
            if time.monotonic() > patience:
                log.info("waiting for data: %s tokens are written so far", f"{self.store.tokens:,}")
                patience = float("inf")
            if is_worker and os.getppid() != parent:
                os._exit(1)  # the run was killed
            time.sleep(POLL_SECONDS)
            self.store.refresh()
        self._dead_since = None

    def _check_writer(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._check is not None and os.getpid() == self._owner:  # not in a fork
            self._check()
        folder = self.store.path.parent
        if present(folder, "writer"):
            self._dead_since = None
            return
        self._dead_since = self._dead_since or time.monotonic()
        if time.monotonic() - self._dead_since > DEAD_SECONDS:
            raise UserError(
                read_status(folder).get("error")
                or f"The process that writes the token store {folder} has died. What it wrote is kept: continue with "
                f"run=DIR."
            )

    def _say(self, first: int, stop: int) -> None:
        """Leaves word of what this process needs; other words of it are then out of date."""
        mine = self._presence is not None and self._presence.pid == os.getpid()
        if (first, stop) == self._need and mine:
            return
        if not mine:
            self._presence = Presence(self.store.path.parent, "reader", self.store.path.name)
        assert self._presence is not None
        self._need = (first, stop)
        self._presence.say(store=self.store.path.name, first=first, stop=stop)
