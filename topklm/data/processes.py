"""Manners of background processes: they end with the process that started them, and use one core each."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from pathlib import Path


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


def cores() -> int:
    """Cores that this process may use: a job on a cluster is often given a part of a machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_alive(pid: int, started: str | None = None) -> bool:
    """Whether a process of this machine runs. A zombie does not, nor does another that was given the same number later.

    Args:
        started: what ``started_at`` said of it; None where that is not known.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = _stat(pid)
    return not stat or (stat[0] != "Z" and (started is None or stat[19] == started))


def started_at(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None where that cannot be told."""
    stat = _stat(pid)
    return stat[19] if stat else None


@functools.cache
def namespace() -> str:
    """Names the set of processes that this one can see: machines may share a name, and containers a machine. Empty
    where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    """What /proc knows of a process, from its state on; nothing where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return []
