"""The background writer: a process that tokenizes ahead of training, within a disk budget.

It lives as long as the run that started it. Of several runs over one store, one writes at a time, and the next takes
over when it ends. Writers, readers and runs know of each other by what they leave on disk (see presence.py); why the
last writer ended stands in ``writer.json``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ..errors import UserError
from ..files import disk_errors, write_json
from .builder import Split, StoreBuilder
from .presence import Presence, present
from .processes import die_with_parent
from .sources import Source
from .tokenizer import Tokenizer

POLL_SECONDS = 0.05
ADVICE = "Free some space, or choose another place with data.cache_dir=..., then continue with run=DIR."


@dataclass(frozen=True)
class WriterTask:
    """What a writer is to write, as it travels to its process.

    Attributes:
        folder: of the stores. source, split: what goes in. tokenizer_json, end_of_text: the tokenizer.
        processes: of tokenizing. budget_bytes: most bytes of training tokens to keep on disk, None for any; of the runs
            at work on one store, the largest budget counts.
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
        # Said here, and not by the process itself, so that readers know of it before it has started up.
        self._presence = Presence(self.task.folder, "writer", pid=self.pid)
        self._presence.say(working=False)

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
            written = (self.task.folder / "writer.log").exists()
            cause = f"it ended with code {code}, " + ("see writer.log there" if written else "is it writable?")
        raise UserError(
            f"The process that writes the token store {self.task.folder} has died: {cause}. What it wrote is kept: "
            f"continue with run=DIR."
        )

    def stop(self) -> None:
        """Ends the writer, at once: what it has published stands, whenever it is killed."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
            self._presence.leave()
        atexit.unregister(self.stop)


def read_status(folder: Path) -> dict[str, Any]:
    """What ``writer.json`` says of the last writer in the background: ``pid``, ``error`` (a sentence, or None)."""
    try:
        return json.loads((folder / "writer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _main(task: WriterTask) -> None:
    """The writer's process."""
    die_with_parent()
    presence = Presence(task.folder, "writer")
    presence.say(working=False)
    try:
        with (
            disk_errors(task.folder, ADVICE),
            filelock.FileLock(task.folder / "writer.lock", poll_interval=0.2),  # another run may be writing
        ):
            presence.say(working=True)
            _say(task.folder, None)
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
        write_json(folder / "writer.json", {"pid": os.getpid(), "error": error})


def _write(task: WriterTask) -> None:
    tokenizer = Tokenizer.from_json(task.tokenizer_json, end_of_text=task.end_of_text)
    builder = StoreBuilder(task.folder, task.source, tokenizer, task.split, task.processes)
    try:
        while True:
            budget = shared_budget(task.folder, task.budget_bytes)
            if serve(builder, task.folder, budget):
                continue
            if task.budget_bytes is None:
                return  # all is there, and stays while this run lives: nobody drops what a run without a budget uses
            time.sleep(POLL_SECONDS)
    finally:
        builder.close()


def shared_budget(folder: Path, own: int | None) -> int | None:
    """The largest budget of the runs at work in a folder: None, for any, as soon as one of them has none."""
    budgets = [own, *(run["budget_bytes"] for run in present(folder, "run"))]
    return None if None in budgets else max(budget for budget in budgets if budget is not None)


def serve(builder: StoreBuilder, folder: Path, budget_bytes: int | None) -> bool:
    """One move of a writer: makes what a reader waits for, drops what is done with, or writes ahead while there is
    room. Returns whether there was anything to do."""
    train = builder.train
    needs = present(folder, "reader")
    validation_is_waited_for = not builder.validation.complete and any(n["store"] == "validation" for n in needs)
    shards = _Shards(builder, [need for need in needs if need["store"] == "train"], budget_bytes)
    n = len(train.shards)
    # What was written ahead stays, even if it is a little more than there is room for: it would be made again at once.
    shards.drop(0, beyond=0 if builder.complete else n - 1)
    for number in sorted(shards.needed):
        if not train.has(number):
            shards.drop(shards.size(number), beyond=0)
            builder.remake(number)
            return True
    if shards.starving or validation_is_waited_for:  # on with it, whether there is room or not
        shards.drop(builder.next_shard_bytes, beyond=0)
        builder.advance()
        return True
    if missing := shards.missing():
        distance, number = missing[0]
        if room := shards.make_room(shards.size(number), beyond=distance):
            builder.remake(number)
        return room
    if not builder.complete and shards.make_room(builder.next_shard_bytes, beyond=n):
        builder.advance()
        return True
    return False


class _Shards:
    """The published training shards of a builder by how soon they will be read: the distance of a shard is the number
    of shards until a reader comes to it, epochs following each other.

    Args:
        needs: ``first`` and ``stop``, positions in the stream, of each reader. budget_bytes: None for any.

    Attributes:
        needed: shards that are being read. starving: somebody waits for more than is written.
    """

    def __init__(self, builder: StoreBuilder, needs: list[dict[str, Any]], budget_bytes: int | None) -> None:
        self.builder, self.train, self.budget = builder, builder.train, budget_bytes
        ends = np.cumsum([shard["tokens"] for shard in self.train.shards], dtype=np.int64)
        self._at = [int(np.searchsorted(ends, need["first"], side="right")) for need in needs]
        stops = [min(int(np.searchsorted(ends, need["stop"], side="left")) + 1, len(ends)) for need in needs]
        self.needed = {n for at, stop in zip(self._at, stops, strict=True) for n in range(at, stop)}
        self.starving = not builder.complete and any(need["stop"] > builder.train.sealed_tokens for need in needs)

    def size(self, number: int) -> int:
        return self.train.shards[number]["tokens"] * self.train.dtype.itemsize

    def distance(self, number: int) -> int:
        """While the store is not complete nobody knows when an epoch ends: what is passed comes last, the oldest
        last of all."""
        return min((self._distance(number, at) for at in self._at), default=number)

    def _distance(self, number: int, at: int) -> int:
        n = len(self.train.shards)
        if number >= at:
            return number - at
        return n - at + number if self.builder.complete else n + at - number

    def missing(self) -> list[tuple[int, int]]:
        """Distance and number of the shards to make again, the nearest first."""
        if self.budget is not None and not self._at:
            return []  # nobody reads: who knows which are wanted
        n = len(self.train.shards)
        missing = [(self.distance(number), number) for number in range(n) if not self.train.has(number)]
        passed_too = self.builder.complete or self.budget is None
        return sorted((distance, number) for distance, number in missing if passed_too or distance < n)

    def make_room(self, size: int, beyond: int) -> bool:
        """Drops the furthest shards at more than a distance if ``size`` bytes then fit, and returns whether they do."""
        victims, enough = self._victims(size, beyond)
        if enough:
            self._drop(victims)
        return enough

    def drop(self, size: int, beyond: int) -> None:
        """The same, as far as it goes where it is not enough."""
        self._drop(self._victims(size, beyond)[0])

    def _victims(self, size: int, beyond: int) -> tuple[list[int], bool]:
        """What to drop for ``size`` bytes, and whether it is enough. What is needed stays, and so does everything while
        nobody reads."""
        if self.budget is None:
            return [], True
        over = self.train.bytes_on_disk() + size - self.budget
        present = [n for n in range(len(self.train.shards)) if self.train.has(n)]
        far = sorted(((self.distance(n), n) for n in present if n not in self.needed and self._at), reverse=True)
        victims = []
        for distance, number in far:
            if over <= 0 or distance <= beyond:
                break
            victims.append(number)
            over -= self.size(number)
        return victims, over <= 0

    def _drop(self, numbers: list[int]) -> None:
        for number in numbers:
            self.train.drop(number)
