"""Who is at work in a cache folder: readers and what they need, runs and their disk budgets, writers.

Each leaves a small file in ``present/``. It counts as long as its process lives; on another host, where that cannot be
seen, as long as the file is touched now and then. Nobody has to say goodbye.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ..files import write_json
from .processes import is_alive, started_at

TOUCH_SECONDS = 10.0  # between signs of life
SILENT_SECONDS = 300.0  # without one, after which a process of another host counts as gone


class Presence:
    """A file that says what a process does here, ``about``, until the process ends or ``leave`` is called.

    Where the folder cannot be written it says nothing: a store in such a place is complete, and nobody has to know who
    reads it.

    Args:
        folder: of the cache. role: ``reader``, ``run`` or ``writer``. name: tells apart several of one process.
        pid: of the process, None for this one.
    """

    def __init__(self, folder: Path, role: str, name: str = "", pid: int | None = None) -> None:
        self.pid, self.role = pid or os.getpid(), role
        host = socket.gethostname()
        self.path = folder / "present" / f"{role}-{host}-{self.pid}{'-' if name else ''}{name}.json"
        self._who = {"role": role, "host": host, "pid": self.pid, "started": started_at(self.pid)}
        self._about: dict[str, Any] = {}
        self._touched = 0.0

    def say(self, **about: Any) -> None:
        """Says what this process does, in place of what it said before."""
        self._about, self._touched = about, time.monotonic()
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._who | about)

    def touch(self) -> None:
        """Gives a sign of life, if it is time for one."""
        if time.monotonic() - self._touched < TOUCH_SECONDS:
            return
        self._touched = time.monotonic()
        try:
            os.utime(self.path)
        except FileNotFoundError:  # taken for dead, and swept out
            self.say(**self._about)
        except OSError:
            pass

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def present(folder: Path, role: str) -> list[dict[str, Any]]:
    """What the living of one role have said, ``host``, ``pid`` and more; the files of the dead are removed."""
    found = []
    for path in (folder / "present").glob(f"{role}-*.json"):
        try:
            who = json.loads(path.read_text(encoding="utf-8"))
            silent = time.time() - path.stat().st_mtime
        except (OSError, ValueError):
            continue
        here = who["host"] == socket.gethostname()
        if is_alive(who["pid"], who["started"]) if here else silent < SILENT_SECONDS:
            found.append(who)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return found
