"""The background writer: training reads the same tokens as from a finished store, within a budget, and a dead writer is
noticed."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from topklm.data import Choice, Split, TokenizerConfig, TokenStore, prepare
from topklm.data.background import live_needs, read_status, serve
from topklm.data.builder import StoreBuilder
from topklm.data.packing import BestFit, Concat
from topklm.data.processes import is_alive
from topklm.data.reader import StoreReader
from topklm.data.windows import TrainWindows
from topklm.errors import UserError

CONFIG = TokenizerConfig(name="bytes")
SPLIT = Split(0.1, hold_out_tokens=800, shard_tokens=3000)


class SlowSource:
    """Documents at a trickle, from a process of their own."""

    name = "slow"

    def __init__(self, documents, seconds=0.002, fail_at=None, fingerprint="slow"):
        self._documents, self.seconds, self.fail_at, self.fingerprint = documents, seconds, fail_at, fingerprint
        self.skipped = {}

    def documents(self, after=None):
        import dataclasses

        for number, document in enumerate(self._documents, start=1):
            if number == self.fail_at:
                raise UserError("The source broke at last.")
            if number > (after or 0):
                time.sleep(self.seconds)
                yield dataclasses.replace(document, cursor=number)


@pytest.fixture
def finished(corpus, tmp_path):
    return prepare(SlowSource(corpus, 0), CONFIG, SPLIT, tmp_path / "finished")


@pytest.fixture
def streaming(tmp_path):
    """streaming(source, ...) prepares in the background; the writer ends with the test."""
    started = []

    def start(source, **options):
        started.append(prepare(source, CONFIG, SPLIT, tmp_path / "streaming", background=True, writers=1, **options))
        return started[-1]

    yield start
    for prepared in started:
        prepared.close()


def windows(prepared, packing=Concat):
    return TrainWindows(packing(prepared.train, 32), seed=3, block_windows=64)


def folder_of(prepared):
    return prepared.train.store.path.parent


def size_of(file):
    try:
        return file.stat().st_size
    except FileNotFoundError:  # dropped this very moment
        return 0


@pytest.mark.parametrize("packing", [Concat, BestFit])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_same_windows_while_the_writer_runs(corpus, finished, streaming, packing, workers):
    prepared = streaming(SlowSource(corpus))
    steps = [range(first, first + 8) for first in range(0, 1500, 8)]
    options = {"batch_sampler": steps, "collate_fn": lambda batch: batch, "num_workers": workers}
    expected = list(DataLoader(windows(finished, packing), batch_sampler=steps, collate_fn=lambda batch: batch))
    seen_growing = False
    for ours, theirs in zip(DataLoader(windows(prepared, packing), **options), expected, strict=True):
        seen_growing |= not TokenStore(prepared.train.store.path, growing=True).complete
        assert torch.equal(ours, theirs)
    assert seen_growing
    prepared.check()


def test_it_begins_with_the_first_block(corpus, streaming):
    prepared = streaming(SlowSource(corpus, 0.01))
    assert windows(prepared)[0].shape == (33,)
    assert not prepared.train.store.complete


def test_a_budget_holds_and_dropped_shards_come_back(corpus, finished, streaming):
    prepared = streaming(SlowSource(corpus, 0), cache_gb=14_000 / 1e9)  # two shards of 6 kB and a bit
    ours, theirs = windows(prepared), windows(finished)
    n = theirs.packing.available(0, 1)[0]
    assert finished.train.store.tokens * 2 > 3 * 14_000
    most, dropped = 0, False
    for position in range(0, 2 * n, 4):  # two epochs: all is dropped, and made again
        assert torch.equal(ours[position], theirs[position]), position
        files = list(prepared.train.store.path.glob("*.bin"))
        most = max(most, sum(map(size_of, files)))
        dropped |= 0 < len(files) < len(prepared.train.store.shards)
    assert dropped
    assert most <= 14_000 + 2 * 6_600  # the block being read may need two more than there is room for
    prepared.check()


def test_a_run_without_a_budget_completes_what_one_with_a_budget_left(corpus, finished, streaming):
    choice = Choice(SlowSource(corpus, 0), CONFIG, SPLIT, folder_of(finished).parent)
    builder = StoreBuilder(choice.folder, choice.source, choice.tokenizer, SPLIT)
    expected = finished.train.store.read(0, finished.train.store.tokens).tolist()
    builder.train.drop(1)
    builder.train.drop(2)
    assert not choice.is_complete
    again = prepare(SlowSource(corpus, 0), CONFIG, SPLIT, choice.folder.parent)
    assert again.train.store.read(0, again.train.store.tokens).tolist() == expected


def test_two_runs_share_a_store_and_the_second_takes_over(corpus, finished, streaming):
    runs = [streaming(SlowSource(corpus, 0.005)) for _ in range(2)]
    assert folder_of(runs[0]) == folder_of(runs[1])
    expected = windows(finished)
    assert all(torch.equal(windows(run)[0], expected[0]) for run in runs)
    pid = read_status(folder_of(runs[0]))["pid"]
    first, second = sorted(runs, key=lambda run: run.writer.pid != pid)
    assert not second.train.store.complete
    first.close()
    ours = windows(second)
    n = expected.packing.available(0, 1)[0]
    for position in range(0, n, 10):
        assert torch.equal(ours[position], expected[position])
    assert read_status(folder_of(second))["pid"] != pid
    second.check()


def test_a_failing_source_is_reported_in_its_own_words(corpus, streaming):
    prepared = streaming(SlowSource(corpus, 0.001, fail_at=200))
    data = windows(prepared)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^The source broke at last\.$"):
        for position in range(0, 10_000, 8):
            data[position]
    assert time.monotonic() - started < 20
    with pytest.raises(UserError, match="broke at last"):
        prepared.check()
    assert TokenStore(prepared.train.store.path, growing=True).tokens > 0


def test_a_killed_writer_is_reported_with_the_signal(corpus, streaming):
    prepared = streaming(SlowSource(corpus, 0.05))
    while not (folder_of(prepared) / "writer.json").exists():
        time.sleep(0.05)
    os.kill(prepared.writer.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"has died: it was killed by SIGKILL.*What it wrote is kept"):
        windows(prepared)[5000]


def test_a_worker_that_does_not_know_the_writer_notices_too(corpus, streaming, monkeypatch):
    monkeypatch.setattr("topklm.data.reader.DEAD_SECONDS", 0.3)
    prepared = streaming(SlowSource(corpus, 0.05))
    while not (folder_of(prepared) / "writer.json").exists():
        time.sleep(0.05)
    prepared.writer.stop()
    reader = StoreReader(TokenStore(prepared.train.store.path, growing=True))
    with pytest.raises(UserError, match="has died"):
        reader.wait_for(0, 10_000_000)


def test_a_writer_ends_with_the_process_that_started_it(corpus, tmp_path):
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_stream_and_hang, args=(corpus, tmp_path, queue))
    child.start()
    writer = queue.get(timeout=60)
    assert is_alive(writer)
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)
    deadline = time.monotonic() + 10
    while is_alive(writer) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(writer)


def _stream_and_hang(corpus, folder, queue):
    prepared = prepare(SlowSource(corpus, 1.0), CONFIG, SPLIT, folder, background=True, writers=1)
    queue.put(prepared.writer.pid)
    time.sleep(300)


def test_needs_of_the_dead_are_forgotten(tmp_path):
    folder = tmp_path / "readers"
    folder.mkdir()
    import socket

    for name, pid in (("alive", os.getpid()), ("dead", 2**22 - 3)):
        need = {"host": socket.gethostname(), "pid": pid, "store": "train", "first": 0, "stop": 5}
        (folder / f"{name}.json").write_text(json.dumps(need))
    assert [need["pid"] for need in live_needs(tmp_path)] == [os.getpid()]
    assert not (folder / "dead.json").exists()


def test_a_writer_pauses_when_there_is_no_room_and_nobody_waits(corpus, tmp_path):
    choice = Choice(SlowSource(corpus, 0), CONFIG, Split(0.1, 100, 3000), tmp_path)
    builder = StoreBuilder(choice.folder, choice.source, choice.tokenizer, choice.split, processes=1)
    moves = 0
    while serve(builder, choice.folder, 14_000):
        moves += 1
    assert 0 < len(builder.train.shards) < 5
    assert not builder.complete
    store = TokenStore(choice.folder / "train", growing=True)
    reader = StoreReader(store)
    ended = threading.Event()

    def keep_serving():
        while not ended.is_set():
            serve(builder, choice.folder, 14_000)

    thread = threading.Thread(target=keep_serving)
    thread.start()
    try:
        reader._check_writer = lambda: None  # the writer is in this very process
        total = 0
        while reader.wait_for(total, total + 1000):
            total += len(reader.read(total, 1000))
    finally:
        ended.set()
        thread.join()
    assert store.complete
    assert total == store.tokens // 1000 * 1000
    assert np.all(store.read(store.tokens - 1, 1) == store.manifest["eot_id"])
    builder.close()
