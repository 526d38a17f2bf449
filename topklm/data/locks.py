"""One process at a time writes in a cache folder; who has to wait says for whom."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from .presence import Presence, present

log = logging.getLogger(__name__)

SILENT_SECONDS = 3.0  # of waiting before a word is said


@contextlib.contextmanager
def exclusive(path: Path, done: Callable[[], bool]) -> Iterator[None]:
    """Holds the lock file ``path``, and says so beside it for so long. Whoever waits for another says once for which,
    and what can be done about it; the wait ends, without the lock, as soon as the work that it was for is ``done``."""
    lock = filelock.FileLock(path, poll_interval=0.1)
    said = False
    while True:
        try:
            lock.acquire(timeout=SILENT_SECONDS)
            break
        except filelock.Timeout:
            if done():
                yield
                return
        if not said:
            log.warning(
                "waiting for %s to end: it works in %s. End it, or choose another data.cache_dir, if it should not.",
                _holder(path.parent),
                path.parent,
            )
            said = True
    presence = Presence(path.parent, "writer", path.stem)
    try:
        presence.say(working=True)
        yield
    finally:
        presence.leave()
        lock.release()


def _holder(folder: Path) -> str:
    """The process that says that it writes in a folder, in words."""
    for who in present(folder, "writer"):
        if who["working"]:
            return f"process {who['pid']} on {who['host']}"
    return "another process, which has not said who it is,"
