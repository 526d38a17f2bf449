"""One process at a time writes in a cache folder; who has to wait says for whom."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from .background import _say as say_who_writes
from .background import read_status
from .processes import is_alive

log = logging.getLogger(__name__)

SILENT_SECONDS = 3.0  # of waiting before a word is said


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock file ``path``, and names this process in ``writer.json`` beside it for so long. Whoever waits for
    another says once for which, and what can be done about it."""
    lock = filelock.FileLock(path, poll_interval=0.1)
    try:
        lock.acquire(timeout=SILENT_SECONDS)
    except filelock.Timeout:
        log.warning(
            "waiting for %s to end: it works in %s. End it, or choose another data.cache_dir, if it should not.",
            _holder(path.parent),
            path.parent,
        )
        lock.acquire()
    try:
        say_who_writes(path.parent, None)
        yield
    finally:
        with contextlib.suppress(OSError):  # what is left there would have readers wait for this process
            (path.parent / "writer.json").unlink()
        lock.release()


def _holder(folder: Path) -> str:
    """The process that says that it writes in a folder, in words."""
    status = read_status(folder)
    host, pid = status.get("host"), status.get("pid")
    if pid is None or (host == socket.gethostname() and not is_alive(pid)):
        return "another process, which has not said who it is,"
    return f"process {pid} on {host}"
