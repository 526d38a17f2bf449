"""The background writer: a process that tokenizes ahead of training, within a disk budget.

It lives as long as the run that started it. Of several runs over one store, one writes at a time, and the next takes
over when it ends. What it has to know of readers they leave in ``readers/`` (see reader.py), and what they have to know
of it stands in ``writer.json``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from ..errors import UserError
from ..files import disk_errors, write_json
from .builder import Split, StoreBuilder
from .processes import die_with_parent, is_alive
from .sources import Source
from .tokenizer import Tokenizer

POLL_SECONDS = 0.05
ADVICE = "Free some space, or choose another place with data.cache_dir=..., then continue with run=DIR."


@dataclass(frozen=True)
class WriterTask:
    """What a writer is to write, as it travels to its process.

    Attributes:
        folder: of the stores. source, split: what goes in. tokenizer_json, end_of_text: the tokenizer.
        processes: of tokenizing. budget_bytes: most bytes of training tokens to keep on disk, None for any.
    """

    folder: Path
    source: Source
    tokenizer_json: str
    end_of_text: str | None
    split: Split
    processes: int
    budget_bytes: int | None


class BackgroundWriter:
    """A handle on the writer's process."""

    def __init__(self, task: WriterTask) -> None:
        self.task = task
        self._process = multiprocessing.get_context("spawn").Process(target=_main, args=(task,), name="topklm-writer")

    def start(self) -> None:
        self._process.start()
        atexit.register(self.stop)  # Python would wait for it at exit

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def check(self) -> None:
        """Raises UserError with the cause if the writer has died."""
        code = self._process.exitcode
        if code in (None, 0):
            return
        status = read_status(self.task.folder)
        if status.get("pid") == self._process.pid and status.get("error"):
            raise UserError(status["error"])
        if code < 0:
            cause = f"it was killed by {signal.Signals(-code).name} (the system does so when memory runs out)"
        else:
            cause = f"it ended with code {code}, see {self.task.folder / 'writer.log'}"
        raise UserError(
            f"The process that writes the token store {self.task.folder} has died: {cause}. What it wrote is kept: "
            f"continue with run=DIR."
        )

    def stop(self) -> None:
        """Ends the writer, at once: what it has published stands, whenever it is killed."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        atexit.unregister(self.stop)


def read_status(folder: Path) -> dict[str, Any]:
    """What ``writer.json`` says: ``pid``, ``host``, ``error`` (a sentence, or None)."""
    try:
        return json.loads((folder / "writer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _main(task: WriterTask) -> None:
    """The writer's process."""
    die_with_parent()
    with filelock.FileLock(task.folder / "writer.lock", poll_interval=0.2):  # another run may be writing
        _say(task.folder, None)
        try:
            with disk_errors(task.folder, ADVICE):
                _write(task)
        except UserError as error:
            _say(task.folder, str(error))
            sys.exit(1)
        except Exception as error:
            with contextlib.suppress(OSError):
                (task.folder / "writer.log").write_text(traceback.format_exc(), encoding="utf-8")
            _say(
                task.folder,
                f"The process that writes the token store {task.folder} has died of {type(error).__name__}: {error} "
                f"(see writer.log there). What it wrote is kept: continue with run=DIR.",
            )
            sys.exit(1)


def _say(folder: Path, error: str | None) -> None:
    with contextlib.suppress(OSError):  # a full disk must not hide why it is full
        status = {"host": socket.gethostname(), "pid": os.getpid(), "error": error}
        write_json(folder / "writer.json", status)


def _write(task: WriterTask) -> None:
    tokenizer = Tokenizer.from_json(task.tokenizer_json, end_of_text=task.end_of_text)
    builder = StoreBuilder(task.folder, task.source, tokenizer, task.split, task.processes)
    try:
        if task.budget_bytes is None:
            for number in range(len(builder.train.shards)):  # dropped under a budget of an earlier run
                if not builder.train.has(number):
                    builder.remake(number)
            builder.run()
            return
        while True:
            if not serve(builder, task.folder, task.budget_bytes):
                time.sleep(POLL_SECONDS)
    finally:
        builder.close()


def serve(builder: StoreBuilder, folder: Path, budget_bytes: int) -> bool:
    """One move of a writer under a budget: makes what a reader waits for, or writes ahead while there is room; drops
    what is done with. Returns whether there was anything to do."""
    train = builder.train
    needs = live_needs(folder)
    validation_is_waited_for = any(need["store"] == "validation" for need in needs)
    needs = [need for need in needs if need["store"] == "train"]
    _keep_within(builder, needs, budget_bytes)
    for number in sorted({number for need in needs for number in _shards(builder, need)}):
        if not train.has(number):
            builder.remake(number)
            return True
    if builder.complete:
        return False
    starving = any(need["stop"] > train.sealed_tokens for need in needs)
    starving |= validation_is_waited_for and not builder.validation.complete
    if starving or train.bytes_on_disk() < budget_bytes:
        builder.advance()
        return True
    return False


def live_needs(folder: Path) -> list[dict[str, Any]]:
    """What readers that are alive have said they need: ``store``, and ``first`` and ``stop``, positions in its
    stream."""
    needs = []
    for path in (folder / "readers").glob("*.json"):
        try:
            need = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if need["host"] == socket.gethostname() and not is_alive(need["pid"]):
            path.unlink(missing_ok=True)
        else:
            needs.append(need)
    return needs


def _shards(builder: StoreBuilder, need: dict[str, Any]) -> list[int]:
    """Published shards that overlap a need."""
    return [number for number, start, end in _spans(builder) if start < need["stop"] and need["first"] < end]


def _spans(builder: StoreBuilder) -> Iterator[tuple[int, int, int]]:
    """Number, beginning and end of each published shard, in tokens of the stream."""
    start = 0
    for number, shard in enumerate(builder.train.shards):
        yield number, start, start + shard["tokens"]
        start += shard["tokens"]


def _keep_within(builder: StoreBuilder, needs: list[dict[str, Any]], budget_bytes: int) -> None:
    """Drops shards until the budget holds: the oldest that every reader has passed, then, at the turn of an epoch,
    those that are needed last. Before anybody reads, nothing is dropped."""
    train = builder.train
    if not needs:
        return
    first = min(need["first"] for need in needs)
    passed = [number for number, _, end in _spans(builder) if end <= first]
    needed = {number for need in needs for number in _shards(builder, need)}
    ahead = list(range(len(train.shards) - 1, max(needed), -1)) if builder.complete and needed else []
    for number in [*passed, *ahead]:
        if train.bytes_on_disk() <= budget_bytes:
            return
        train.drop(number)
