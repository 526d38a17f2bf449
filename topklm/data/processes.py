"""Manners of background processes: they end with the process that started them, and use one core each."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading


def die_with_parent() -> None:
    """Ends this process as soon as its parent is gone, however that came about.

    Ctrl-C and SIGTERM, which may reach a whole group of processes, are left to the parent: it ends its step first.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def no_inner_threads() -> None:
    """Keeps ``tokenizers`` from starting a thread per core inside this process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs. A zombie does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return True  # no /proc on this system
