"""Who is at work in a cache folder: readers and what they need, runs and their disk budgets, writers.

Each leaves a small file in ``present/``. It counts as long as its process lives; where that cannot be seen, on another
host or in another container, as long as the file is touched now and then. Nobody has to say goodbye.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from ..files import write_json
from .processes import is_alive, namespace, started_at

TOUCH_SECONDS = 10.0  # between signs of life
SILENT_SECONDS = 300.0  # without one, after which a process that cannot be seen counts as gone


class Presence:
    """A file that says what a process does here, until the process ends or ``leave`` is called.

    A process that speaks for itself gives signs of life from the first word on, by a thread of its own, whatever it is
    busy with.

    Where the folder cannot be written it says nothing: a store in such a place is complete, and nobody has to know who
    reads it.

    Args:
        folder: of the cache. role: ``reader``, ``run`` or ``writer``. name: tells apart several of one process.
        pid: of the process, None for this one.
    """

    def __init__(self, folder: Path, role: str, name: str = "", pid: int | None = None) -> None:
        self.pid = pid or os.getpid()
        host, space = socket.gethostname(), namespace()
        self.path = folder / "present" / f"{role}-{host}-{space}-{self.pid}{'-' if name else ''}{name}.json"
        self._who = {"role": role, "host": host, "space": space, "pid": self.pid, "started": started_at(self.pid)}
        self._about: dict[str, Any] = {}
        self._left = threading.Event()
        self._breathes = pid is not None

    def say(self, **about: Any) -> None:
        """Says what this process does, in place of what it said before."""
        self._about = about
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self._who | about)
        if not self._breathes:
            self._breathes = True
            threading.Thread(target=self._breathe, daemon=True).start()

    def _breathe(self) -> None:
        while not self._left.wait(TOUCH_SECONDS):
            self.touch()

    def touch(self) -> None:
        """Gives a sign of life."""
        try:
            os.utime(self.path)
        except FileNotFoundError:  # taken for dead, and swept out
            self.say(**self._about)
        except OSError:
            pass

    def leave(self) -> None:
        self._left.set()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def present(folder: Path, role: str) -> list[dict[str, Any]]:
    """What the living of one role have said, ``host``, ``pid`` and more. The files of the dead of any role are
    removed."""
    found = []
    for path in (folder / "present").glob("*.json"):
        try:
            who = json.loads(path.read_text(encoding="utf-8"))
            silent = time.time() - path.stat().st_mtime
        except (OSError, ValueError):
            continue
        here = (who["host"], who["space"]) == (socket.gethostname(), namespace())
        if is_alive(who["pid"], who["started"]) if here else silent < SILENT_SECONDS:
            if who["role"] == role:
                found.append(who)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return found
