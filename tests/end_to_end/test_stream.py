"""Training while the token store is being written: the same run as from a finished store, whatever stops it."""

import json
import os
import signal
import time

import pytest
import torch

from tests.end_to_end.conftest import launch_train, summary
from tests.end_to_end.test_resume import EXACT, assert_same, stop_after
from topklm.data import Document, Embedded, TokenStore
from topklm.data.background import read_status
from topklm.data.sources import is_validation
from topklm.training.metrics_file import read_metrics

LENGTH = ("training.steps=40", "training.eval_every=20", "callbacks.checkpoints.every_n_steps=5")
PLAIN = (*LENGTH, "training.log_every=1", "optimizer=adamw", "trainer.precision=32", "trainer.accelerator=cpu")
STORE = ("data=files", "tokenizer=bytes", "data.shard_tokens=3k", "data.hold_out_tokens=2k", "data.block_windows=32")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder of JSONL: 400 articles of about 500 bytes."""
    folder = tmp_path_factory.mktemp("texts")
    documents = [document for document, _ in zip(Embedded().documents(), range(400), strict=False)]
    lines = [
        json.dumps({"text": document.text[:500], "topic": document.meta["topic"]}) + "\n" for document in documents
    ]
    (folder / "a.jsonl").write_text("".join(lines))
    return folder


def slow(texts, fast=150, fail_at="null"):
    """A source of which a run of 40 steps needs about 100 documents."""
    return (
        *STORE,
        f"data.paths=[{texts}]",
        "data.source._target_=tests.slow_source.SlowFiles",
        f"+data.source.fast={fast}",
        f"+data.source.fail_at={fail_at}",
    )


@pytest.fixture(scope="module")
def straight(tmp_path_factory, texts):
    """The run directory of an uninterrupted run from a store that was finished first."""
    folder = tmp_path_factory.mktemp("straight")
    launch_train(folder, folder / "cache", "hydra.run.dir=run", *PLAIN, *slow(texts, 400), "data.stream=false")
    return folder / "run"


def store_of(cache):
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return TokenStore(folder / "train", growing=True), folder


def test_stopped_twice_and_continued_while_the_writer_works_it_is_the_same_run(texts, tmp_path, straight):
    cache = tmp_path / "cache"
    run = launch_train(tmp_path, cache, "hydra.run.dir=run", *PLAIN, *slow(texts), wait=False)
    stop_after(run, tmp_path / "run", 8)
    assert not store_of(cache)[0].complete
    run = launch_train(tmp_path, cache, "run=run", "data.num_workers=1", wait=False)
    stop_after(run, tmp_path / "run", 17)
    assert not store_of(cache)[0].complete
    launch_train(tmp_path, cache, "run=run", "data.num_workers=4")
    assert_same(tmp_path / "run", straight)


def test_two_ranks_take_over_while_the_writer_works(texts, tmp_path, straight):
    cache = tmp_path / "cache"
    run = launch_train(tmp_path, cache, "hydra.run.dir=run", *PLAIN, *slow(texts), wait=False)
    stop_after(run, tmp_path / "run", 8)
    assert not store_of(cache)[0].complete
    launch_train(tmp_path, cache, "run=run", "trainer.devices=2", "trainer.strategy=ddp")
    one, other = (read_metrics(path / "metrics.csv") for path in (straight, tmp_path / "run"))
    for metric in EXACT:
        if "dead_fraction" not in metric:
            assert other[metric][1] == pytest.approx(one[metric][1], rel=0.01), metric


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_that_breaks_is_told_in_a_sentence_and_nothing_is_lost(texts, tmp_path, workers):
    cache = tmp_path / "cache"
    overrides = (*slow(texts, fail_at=162), f"data.num_workers={workers}", "training.steps=400")
    process = launch_train(tmp_path, cache, "hydra.run.dir=run", *PLAIN, *overrides, check=False)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1] == "Error: The source broke at last."
    assert "Traceback" not in process.stderr
    assert summary(tmp_path / "run")["status"] == "failed"
    assert store_of(cache)[0].tokens > 0


def test_a_line_that_cannot_be_read_can_be_passed_over_when_the_run_goes_on(texts, tmp_path):
    lines = (texts / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "broken.jsonl").write_text("".join([*lines[:160], "{not JSON\n", *lines[160:]]))
    choice = (*STORE, "data.paths=[broken.jsonl]", "callbacks.checkpoints.every_n_steps=1", "training.steps=400")
    process = launch_train(tmp_path, tmp_path / "cache", "hydra.run.dir=run", *PLAIN[2:], *choice, check=False)
    assert process.returncode == 1
    assert "line 161: not JSON" in process.stderr
    launch_train(tmp_path, tmp_path / "cache", "run=run", "data.on_error=skip")
    assert summary(tmp_path / "run")["status"] == "finished"


def test_a_writer_that_is_killed_is_reported_within_seconds(texts, tmp_path, straight):
    cache = tmp_path / "cache"
    run = launch_train(tmp_path, cache, "hydra.run.dir=run", *PLAIN, *slow(texts), "data.num_workers=1", wait=False)
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        assert run.poll() is None
        time.sleep(0.05)
    os.kill(read_status(store_of(cache)[1])["pid"], signal.SIGKILL)
    _, stderr = run.communicate(timeout=30)
    assert run.returncode == 1
    assert "it was killed by SIGKILL" in stderr
    assert "Traceback" not in stderr
    launch_train(tmp_path, cache, "run=run")
    assert_same(tmp_path / "run", straight)


def test_a_full_disk_under_the_writer(texts, tmp_path, straight):
    cache, large = tmp_path / "cache", "data.shard_tokens=30k"
    choice = (*PLAIN, *slow(texts, 400), large)
    process = launch_train(tmp_path, cache, "hydra.run.dir=run", *choice, check=False, largest_file=50_000)
    assert process.returncode == 1
    (line,) = process.stderr.strip().splitlines()
    assert line.startswith("Error: Cannot write ")
    assert "File too large" in line
    launch_train(tmp_path, cache, "hydra.run.dir=run", *choice)
    assert summary(tmp_path / "run")["val_loss"] == summary(straight)["val_loss"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_budget_holds_and_changes_nothing(texts, tmp_path, straight, workers):
    cache, budget = tmp_path / "cache", ("data.cache_gb=0.00004", f"data.num_workers={workers}")
    run = launch_train(tmp_path, cache, "hydra.run.dir=run", *PLAIN, *slow(texts, 400), *budget, wait=False)
    most = 0
    while run.poll() is None:
        files = list(cache.glob("*/train/*.bin"))
        try:
            most = max(most, sum(file.stat().st_size for file in files))
        except FileNotFoundError:
            continue
        time.sleep(0.01)
    run.communicate()
    assert run.returncode == 0
    assert 0 < most < 60_000  # of 340,000
    assert_same(tmp_path / "run", straight)


def test_a_data_set_with_fewer_documents_than_workers_is_read_again_and_again(tmp_path):
    texts = [f"{word} " * 40 for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
    sides = {is_validation(Document("", text), 0.4): text for text in texts}
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({"text": sides[side]}) + "\n" for side in (False, True)))
    overrides = ("data=files", "data.paths=[two.jsonl]", "tokenizer=bytes", "data.val_fraction=0.4")
    launch_train(tmp_path, tmp_path / "cache", "hydra.run.dir=run", *overrides, "data.num_workers=4")
    assert summary(tmp_path / "run")["status"] == "finished"


def test_the_hub_path_best_fit_and_document_attention(texts, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in (texts / "a.jsonl").read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "part.parquet", row_group_size=50)
    overrides = ("data=hub", "data.path=parquet", "data.data_files=[part.parquet]", "data.meta_columns=[topic]")
    how = ("tokenizer=bytes", "data.packing=best_fit", "data.attend=document", "data.val_fraction=0.1")
    launch_train(tmp_path, tmp_path / "cache", "hydra.run.dir=run", *overrides, *how, "training.micro_batch_tokens=256")
    assert summary(tmp_path / "run")["status"] == "finished"
    store = TokenStore(store_of(tmp_path / "cache")[1] / "train")
    assert next(store.documents())["topic"]
    losses = read_metrics(tmp_path / "run" / "metrics.csv")["train/loss"][1]
    assert losses[-1] < losses[0]


def test_a_mixture_reports_the_loss_of_each_source(train, tmp_path):
    train("hydra.run.dir=run", "data=mixture", "tokenizer.train_bytes=500000", "data.max_val_tokens=null")
    found = read_metrics(tmp_path / "run" / "metrics.csv")
    sources = [found[f"val/loss/{name}"][1][-1] for name in ("en", "es")]
    assert min(sources) < found["val/loss"][1][-1] < max(sources)
    assert found["val/bpb/es"][1][-1] > 0


def test_tokens_made_elsewhere(train, tmp_path):
    """llm.c's format, with the byte tokenizer: end-of-text 0."""
    import numpy as np

    from topklm.data import Tokenizer

    tokenizer = Tokenizer.of_bytes()
    ids = np.concatenate([[0, *tokenizer.encode([f"document {i} of some length"])[0]] for i in range(300)])
    header = np.zeros(256, dtype="<i4")
    header[:3] = (20240520, 1, len(ids))
    (tmp_path / "train.bin").write_bytes(header.tobytes() + ids.astype("<u2").tobytes())
    overrides = ("data=tokens", "data.paths=[train.bin]", "tokenizer=bytes", "data.eot_id=0")
    train("hydra.run.dir=run", *overrides)
    assert summary(tmp_path / "run")["val_bpb"] > 0
    process = train(*overrides[:-1], "data.eot_id=5", check=False)
    assert "data.eot_id=5, but the tokenizer's end-of-text token is 0" in process.stderr
    torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
