"""The loader that training draws from, with workers: a dead writer is reported while it waits for a batch."""

import dataclasses
import os
import signal
import threading
import time

import pytest

from topklm.data import Split, TokenizerConfig, prepare
from topklm.data.background import read_status
from topklm.data.datamodule import TimedLoader
from topklm.data.packing import Concat
from topklm.data.windows import TrainWindows
from topklm.errors import UserError


class Endless:
    """The documents again and again, slowly, until it breaks if it should."""

    name = fingerprint = "endless"

    def __init__(self, documents, fail_at=None):
        self._documents, self.fail_at, self.skipped = documents, fail_at, {}

    def documents(self, after=None):
        for number in range(after or 0, 10**9):
            time.sleep(0.02)
            if number == self.fail_at:
                raise UserError("The source broke at last.")
            yield dataclasses.replace(self._documents[number % len(self._documents)], cursor=number + 1)

    def share(self, cursor):
        return None


def as_is(batch):
    return batch


@pytest.mark.parametrize(
    ("fail_at", "cause"), [(None, "has died: it was killed by SIGKILL"), (150, r"^The source broke at last\.$")]
)
def test_a_dead_writer_is_reported_with_its_cause_while_workers_wait(corpus, tmp_path, monkeypatch, fail_at, cause):
    monkeypatch.setattr("topklm.data.reader.DEAD_SECONDS", 1.0)  # which workers, forked, have too
    source, split = Endless(corpus, fail_at), Split(0.1, shard_tokens=2000)
    prepared = prepare(source, TokenizerConfig(name="bytes"), split, tmp_path, background=True, writers=1)
    while not read_status(next(tmp_path.iterdir())):  # its start may take longer than a dead one is waited for here
        time.sleep(0.05)
    windows = TrainWindows(Concat(prepared.train, 32), seed=0, block_windows=32)
    loader = TimedLoader(windows, batch_sampler=[[0], [10**6]], collate_fn=as_is, num_workers=1)
    loader.check = prepared.check
    waiting = threading.Event()

    def kill_once_it_waits():
        waiting.wait(60)
        time.sleep(1)
        os.kill(read_status(next(tmp_path.iterdir()))["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill_once_it_waits)
    try:
        batches = iter(loader)
        if fail_at is None:
            assert next(batches).shape == (1, 33)
            killer.start()
            waiting.set()
        started = time.monotonic()
        with pytest.raises(UserError, match=cause):
            list(batches)
        assert time.monotonic() - started < 60  # it would wait for ever
    finally:
        prepared.close()
        if fail_at is None:
            killer.join()
