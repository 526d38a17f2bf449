"""The background writer: training reads the same tokens as from a finished store, within a budget, and a dead writer is
noticed."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from topklm.data import Choice, Split, TokenizerConfig, TokenStore, prepare
from topklm.data.background import _Shards, read_status, serve, shared_budget
from topklm.data.builder import StoreBuilder
from topklm.data.packing import BestFit, Concat
from topklm.data.presence import Presence
from topklm.data.processes import is_alive
from topklm.data.reader import StoreReader
from topklm.data.windows import TrainWindows
from topklm.errors import UserError

ROOT = Path(__file__).parents[2]

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


def builder_of(source, split, folder):
    choice = Choice(source, CONFIG, split, folder)
    return StoreBuilder(choice.folder, choice.source, choice.tokenizer, split, processes=1), choice.folder


def there(builder):
    return [number for number in range(len(builder.train.shards)) if builder.train.has(number)]


def need(builder, folder, number, name="train"):
    """A reader that reads one shard."""
    first = sum(shard["tokens"] for shard in builder.train.shards[:number])
    presence = Presence(folder, "reader", name)
    presence.say(store=name, first=first, stop=first + 1)
    return presence


def move_on(builder, folder, budget):
    for _ in range(100):
        if not serve(builder, folder, budget):
            return
    raise AssertionError("the writer never rests")


def test_the_next_shards_are_made_before_they_are_waited_for_over_the_turn_of_an_epoch(corpus, tmp_path):
    builder, folder = builder_of(SlowSource(corpus, 0), SPLIT, tmp_path)
    builder.run()
    n = len(builder.train.shards)
    budget = 3 * 7_000
    assert n > 6
    for number in [*range(n), *range(n)]:
        need(builder, folder, number)
        move_on(builder, folder, budget)
        assert {number, (number + 1) % n} <= set(there(builder))
        assert builder.train.bytes_on_disk() <= budget
    builder.close()


def test_two_readers_far_apart_each_find_what_comes_next(corpus, tmp_path):
    builder, folder = builder_of(SlowSource(corpus, 0), SPLIT, tmp_path)
    builder.run()
    need(builder, folder, 1, "train")
    Presence(folder, "reader", "other").say(store="train", first=builder.train.sealed_tokens - 5, stop=10**9)
    move_on(builder, folder, 24_000)  # room for three shards and the last, which is short
    assert set(there(builder)) == {0, 1, 2, len(builder.train.shards) - 1}
    builder.close()


def test_a_budget_holds_with_readers_far_apart_while_the_store_is_not_complete(corpus, tmp_path):
    """A slow run, or one that stands still, must not have everything kept between it and a fast one."""
    builder, folder = builder_of(SlowSource(corpus, 0), SPLIT, tmp_path)
    builder.advance()
    need(builder, folder, 0)
    fast = Presence(folder, "reader", "fast")
    while not builder.complete:
        at = builder.train.sealed_tokens
        fast.say(store="train", first=at - 1, stop=at + 1)
        assert serve(builder, folder, 14_000)
        assert builder.train.bytes_on_disk() <= 14_000 + 7_000
    assert builder.train.has(0)
    builder.close()


def test_a_small_shard_is_not_dropped_for_a_large_one_that_would_not_fit_either(corpus, tmp_path):
    builder, folder = builder_of(SlowSource(corpus, 0), SPLIT, tmp_path)
    builder.run()
    builder.train.drop(1)
    need(builder, folder, 0)
    before = builder.train.bytes_on_disk()
    sizes = [shard["tokens"] * 2 for shard in builder.train.shards]
    shards = _Shards(builder, [{"first": 0, "stop": 1}], before)
    assert not shards.make_room(sum(sizes), beyond=1)
    assert builder.train.bytes_on_disk() == before
    assert shards.make_room(sizes[1], beyond=1)
    assert builder.train.bytes_on_disk() < before
    builder.close()


def test_a_shard_that_comes_out_different_changes_nothing(corpus, tmp_path):
    builder, _ = builder_of(SlowSource(corpus, 0), SPLIT, tmp_path)
    builder.run()
    builder.train.drop(2)
    index = builder.train.path / "shard_00002.jsonl"
    before = index.read_bytes()
    builder.source._documents = [replace(document, text=document.text + "x") for document in corpus]
    with pytest.raises(UserError, match="has changed: shard 2"):
        builder.remake(2)
    assert index.read_bytes() == before
    assert not builder.train.has(2)
    builder.close()


def test_a_run_with_a_budget_that_found_all_there_keeps_it(corpus, finished, streaming):
    """It has no writer that could make again what is dropped."""
    folder = folder_of(finished)
    finished.close()
    ours = prepare(SlowSource(corpus, 0), CONFIG, SPLIT, folder.parent, background=True, cache_gb=14_000 / 1e9)
    assert ours.writer is None
    assert shared_budget(folder, 14_000) is None
    ours.train.read(0, 10)
    ours.close()
    assert list((folder / "present").iterdir()) == []


def test_what_cannot_begin_leaves_nobody_behind(corpus, tmp_path):
    with pytest.raises(UserError, match="broke at last"):
        prepare(SlowSource(corpus, 0, fail_at=300), CONFIG, SPLIT, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert list((folder / "present").iterdir()) == []


def test_a_lock_that_cannot_be_opened_is_told(corpus, tmp_path):
    choice = Choice(SlowSource(corpus, 0), CONFIG, SPLIT, tmp_path)
    (choice.folder / "writer.lock").mkdir()
    prepared = prepare(SlowSource(corpus, 0), CONFIG, SPLIT, tmp_path, background=True, writers=1)
    try:
        with pytest.raises(UserError, match=r"Cannot write .*Is a directory"):
            prepared.train.wait_for(0, 100)
    finally:
        prepared.close()


def test_a_budget_holds_while_only_validation_is_waited_for(corpus, tmp_path):
    builder, folder = builder_of(SlowSource(corpus, 0), Split(0.02, 2_000, 3_000), tmp_path)
    builder.advance()
    need(builder, folder, 0)
    Presence(folder, "reader", "validation").say(store="validation", first=0, stop=1 << 62)
    while not builder.validation.complete:
        assert serve(builder, folder, 14_000)
        assert builder.train.bytes_on_disk() <= 14_000 + 7_000  # and the shard that has just been written
    assert builder.train.has(0)  # which is being read
    assert len(builder.train.shards) > len(there(builder)) + 2
    need(builder, folder, 0)
    move_on(builder, folder, 14_000)
    assert there(builder) == [0, 1]  # made again as soon as there is room
    builder.close()


def test_a_run_without_a_budget_keeps_others_from_dropping_what_it_uses(corpus, tmp_path):
    builder, folder = builder_of(SlowSource(corpus, 0), SPLIT, tmp_path)
    builder.run()
    assert shared_budget(folder, 14_000) == 14_000
    ours = prepare(SlowSource(corpus, 0), CONFIG, SPLIT, tmp_path)
    assert shared_budget(folder, 14_000) is None
    need(builder, folder, 3)
    everything = list(range(len(builder.train.shards)))
    for _ in range(3):
        serve(builder, folder, shared_budget(folder, 14_000))
    assert there(builder) == everything
    builder.train.drop(0)  # by a writer that had looked around a moment before
    assert serve(builder, folder, shared_budget(folder, 14_000))
    assert there(builder) == everything
    ours.close()
    Presence(folder, "run").say(budget_bytes=20_000)
    assert shared_budget(folder, 14_000) == 20_000
    while serve(builder, folder, shared_budget(folder, 14_000)):
        pass
    assert len(there(builder)) < len(everything)
    builder.close()


def test_shards_that_follow_each_other_are_made_in_one_go_through_the_source(corpus, tmp_path):
    begun = []

    class Counted(SlowSource):
        def documents(self, after=None):
            begun.append(after)
            return super().documents(after)

    builder, _ = builder_of(Counted(corpus, 0), SPLIT, tmp_path)
    builder.run()
    begun.clear()
    expected = [entry["sha256"] for entry in builder.train.shards]
    for number in (2, 3, 4, 1):
        builder.train.drop(number)
    for number in (2, 3, 4, 1):
        builder.remake(number)
    assert begun == [builder.train.shards[2]["begins_after"], builder.train.shards[1]["begins_after"]]
    assert [entry["sha256"] for entry in builder.train.shards] == expected
    TokenStore(builder.train.path).verify()
    builder.close()


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


def test_a_worker_does_not_blame_a_dead_writer_while_the_next_one_starts_up(corpus, streaming, tmp_path, monkeypatch):
    monkeypatch.setattr("topklm.data.reader.DEAD_SECONDS", 0.2)
    monkeypatch.setattr("topklm.data.reader.LOOK_SECONDS", 0.0)
    first = streaming(SlowSource(corpus, 0.001, fail_at=200))
    with pytest.raises(UserError, match="broke at last"):
        windows(first)[9_000]
    first.close()
    again = streaming(SlowSource(corpus, 0))  # takes longer to start than a reader has patience with the dead
    reader = StoreReader(TokenStore(again.train.store.path, growing=True))
    reader.wait_for(0, reader.store.tokens + 10_000)
    assert reader.store.tokens > 0


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_run_that_waits_outlives_the_shell_that_it_was_started_from(tmp_path):
    """As with nohup: only a loader's worker ends with its parent."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "from topklm.data.reader import StoreReader\n"
        "from topklm.data.store import TokenStore\n"
        "if os.fork():\n"
        "    os._exit(0)\n"
        "reader = StoreReader(TokenStore(pathlib.Path(sys.argv[1]) / 'train', growing=True))\n"
        "try:\n"
        "    reader.wait_for(0, 10)\n"
        "except BaseException as error:\n"
        "    (pathlib.Path(sys.argv[1]) / 'said').write_text(str(error))\n"
    )
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=60, cwd=ROOT)
    deadline = time.monotonic() + 40
    while not (tmp_path / "said").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "has died" in (tmp_path / "said").read_text()


def _stream_and_hang(corpus, folder, queue):
    prepared = prepare(SlowSource(corpus, 1.0), CONFIG, SPLIT, folder, background=True, writers=1)
    queue.put(prepared.writer.pid)
    time.sleep(300)


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
