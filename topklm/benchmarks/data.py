"""What the data path costs: reading windows, opening a large store, tokenizing, preparing, and training from a stream.

Text: the embedded corpus in its three languages, several times over, each copy marked so that no two documents are
equal. Every comparison is made in one process, turn by turn.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..data import Choice, Document, Embedded, Files, Split, Tokenizer, TokenizerConfig, TokenStore, TokenStoreWriter
from ..data.encode import encode_documents
from ..data.packing import Concat
from ..data.prepare import prepare
from ..data.processes import cores
from ..data.reader import StoreReader
from ..data.store_writer import shard_capacity
from ..data.windows import StepSampler, TrainWindows
from ..model import TopKTransformer
from ..training.config import RunConfig
from ..training.optim import build_optimizer
from .timing import Plot, Result, Row, interleave

COPIES = 2  # of the corpus: 24 MB of text
HEAVY_ROUNDS = 3  # at most, of contenders that take seconds
READ_TOKENS = 20_000_000  # per round
BATCH_WINDOWS = 32
STREAM_STEPS = 10  # training steps per turn


def data_benchmark(config: RunConfig, rounds: int) -> Result:
    """Measures the five, each beside what it is compared with or its bar."""
    heavy = max(1, min(rounds, HEAVY_ROUNDS))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = _corpus()
        texts = folder / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in corpus), encoding="utf-8")
        tokenizer = Tokenizer.train([document.text for document in corpus[: len(corpus) // COPIES]], 4096)
        tokenizer.save(folder / "tokenizer.json")
        rows = [
            *_reading(folder, rounds),
            *_writing(corpus, tokenizer, heavy),
            *_preparing(folder, texts, tokenizer, heavy),
            _streaming(folder, corpus, config, rounds),
        ]
    title = f"data: {len(corpus):,} documents, {sum(d.size for d in corpus) / 1e6:.0f} MB of text"
    return Result(title, rows, [], Plot(y="measured", label=("what",), panels=("unit",)))


def _row(what: str, measured: float, unit: str, bar: str) -> Row:
    return {"what": what, "measured": measured, "unit": unit, "bar": bar}


def _corpus() -> list[Document]:
    once = list(Embedded(["en", "es", "fr"]).documents())
    return [
        replace(document, id=f"{copy}:{document.id}", text=f"{copy} {document.text}")
        for copy in range(COPIES)
        for document in once
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


def _reading(folder: Path, rounds: int) -> Iterator[Row]:
    """Through the DataLoader, collate included, on one core, from a store 20 times the size of a block and more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = _random_store(folder / "random", 200_000_000)
    for seq_len in (256, 2048):
        windows = TrainWindows(Concat(StoreReader(store), seq_len), seed=0, block_windows=8192)
        block_tokens = 8192 * seq_len
        steps = READ_TOKENS // (BATCH_WINDOWS * seq_len)
        rates, before = [], None
        for turn in range(max(3, rounds // 3)):
            sampler = StepSampler((turn + 1) * steps, BATCH_WINDOWS, 0, 1, turn * steps)
            started = time.perf_counter()
            for _ in DataLoader(windows, batch_sampler=sampler, collate_fn=lambda batch: batch):
                pass
            rates.append(steps * BATCH_WINDOWS * seq_len / (time.perf_counter() - started))
            before = before or _resident_bytes()  # after the first turn: buffers are there, the store is mostly unread
        growth = (_resident_bytes() - before) / 1e6 if before else 0.0
        yield _row(f"reading, windows of {seq_len}", statistics.median(rates) / 1e6, "M tokens/s", ">= 50")
        ratio = store.tokens / block_tokens
        yield _row(f"memory growth over a store of {ratio:.0f} blocks", growth, "MB", "< 50")
    torch.set_num_threads(threads)
    sparse = folder / "sparse"
    tokens = _sparse_store(sparse, 2_000_000_000)
    started = time.perf_counter()
    assert TokenStore(sparse, "benchmark").tokens == tokens
    yield _row("opening a store of 2 billion tokens", time.perf_counter() - started, "s", "< 1")


def _random_store(path: Path, tokens: int) -> TokenStore:
    writer = TokenStoreWriter(path, 4096, 0, {"tokenizer": "benchmark"})
    ids = np.random.default_rng(0).integers(1, 4096, 1 << 20).astype(np.uint16)
    while writer.sealed_tokens < tokens:
        writer.append(Document("random", ""), ids, 0)
        if writer.is_full:
            writer.seal(None)
    writer.seal(None, complete=True)
    return TokenStore(path, "benchmark")


def _sparse_store(path: Path, tokens: int) -> int:
    """A store whose files have their length and hold nothing."""
    writer = TokenStoreWriter(path, 4096, 0, {"tokenizer": "benchmark"})
    while writer.sealed_tokens < tokens:
        number = len(writer.shards)
        entry = {"name": f"shard_{number:05d}", "tokens": shard_capacity(number)}
        with open(path / f"{entry['name']}.bin", "wb") as file:
            file.truncate(2 * shard_capacity(number))
        writer.shards.append(entry | {"documents": 0, "text_bytes": 0, "sha256": ""})
    writer.seal(None, complete=True)
    return writer.sealed_tokens


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        return 0
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- tokenizing ------------------------------------------------------------------------------------------------------


def _writing(corpus: list[Document], tokenizer: Tokenizer, rounds: int) -> Iterator[Row]:
    texts = [document.text for document in corpus]
    tokens = sum(len(ids) for _, ids in encode_documents(corpus, tokenizer))

    def encode_batch() -> None:
        for first in range(0, len(texts), 1000):
            tokenizer.inner.encode_batch(texts[first : first + 1000])

    def ours() -> None:
        for _ in encode_documents(corpus, tokenizer):
            pass

    timings = interleave({"ours": ours, "encode_batch": encode_batch}, rounds, warmup=1)
    rate = tokens / timings["ours"].median
    yield _row("tokenizing, all cores", rate / 1e6, "M tokens/s", "")
    yield _row(
        "tokenizing over tokenizers' encode_batch", timings["ours"].speed_over(timings["encode_batch"]), "x", ">= 0.8"
    )


def _preparing(folder: Path, texts: Path, tokenizer: Tokenizer, rounds: int) -> Iterator[Row]:
    """From a JSONL file to a finished store, beside datasets.map and a memory map, as nanoGPT documents it."""
    processes = cores()
    turns = itertools.count()
    config = TokenizerConfig(name="file", path=str(folder / "tokenizer.json"))

    def ours() -> None:
        choice = Choice(Files([str(texts)]), config, Split(0.0005), folder / f"ours-{next(turns)}")
        choice.build(processes=processes)

    def with_map() -> None:
        _datasets_map(texts, tokenizer, folder / f"map-{next(turns)}", processes)

    timings = interleave({"ours": ours, "datasets.map": with_map}, rounds, warmup=1)
    yield _row(f"preparing, {processes} processes", timings["ours"].median, "s", "")
    yield _row("preparing over datasets.map + memmap", timings["ours"].speed_over(timings["datasets.map"]), "x", ">= 1")


def _datasets_map(texts: Path, tokenizer: Tokenizer, folder: Path, processes: int) -> None:
    import datasets

    datasets.disable_progress_bars()
    inner, eot_id = tokenizer.inner, tokenizer.eot_id

    def encode(example: dict[str, str]) -> dict[str, object]:
        ids = [*inner.encode(example["text"], add_special_tokens=False).ids, eot_id]
        return {"ids": ids, "len": len(ids)}

    data = datasets.load_dataset("json", data_files=str(texts), split="train", cache_dir=str(folder))
    for name, split in data.train_test_split(test_size=0.0005, seed=1, shuffle=True).items():
        mapped = split.map(encode, remove_columns=["text"], num_proc=processes)
        out = np.memmap(folder / f"{name}.bin", dtype=np.uint16, mode="w+", shape=(int(np.sum(mapped["len"])),))
        at, shards = 0, min(1024, len(mapped))
        for number in range(shards):
            part = mapped.shard(num_shards=shards, index=number, contiguous=True).with_format("numpy")
            ids = np.concatenate(part["ids"])
            out[at : at + len(ids)] = ids
            at += len(ids)
        out.flush()


# --- training from a stream ------------------------------------------------------------------------------------------


class EndlessSource:
    """Documents over and over: a writer never finishes with them."""

    name = fingerprint = "endless"

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self.skipped: dict[str, int] = {}

    def documents(self, after: int | None = None) -> Iterator[Document]:
        for number in itertools.count(after or 0):
            yield replace(self._documents[number % len(self._documents)], cursor=number + 1)

    def share(self, cursor: int | None) -> None:
        return None


def _streaming(folder: Path, corpus: list[Document], config: RunConfig, rounds: int) -> Row:
    """Steps of the configured model on all cores but one, reading what a writer has written, with the writer at work
    and with the writer held."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    tokenizer = TokenizerConfig(name="file", path=str(folder / "tokenizer.json"))
    split = Split(0.05, hold_out_tokens=100_000)
    prepared = prepare(EndlessSource(corpus), tokenizer, split, folder / "stream", background=True, writers=1)
    assert prepared.writer is not None
    writer = prepared.writer.pid
    step = _trainer(prepared.train, config)

    def at_work() -> None:
        os.kill(writer, signal.SIGCONT)
        for _ in range(STREAM_STEPS):
            step()

    def held() -> None:
        os.kill(writer, signal.SIGSTOP)
        for _ in range(STREAM_STEPS):
            step()

    try:
        timings = interleave({"streaming": at_work, "finished": held}, rounds)
    finally:
        prepared.close()
        torch.set_num_threads(threads)
    return _row(
        "training from a stream over from a finished store",
        timings["streaming"].speed_over(timings["finished"]),
        "x",
        ">= 0.97",
    )


def _trainer(reader: StoreReader, config: RunConfig) -> Callable[[], None]:
    model_config = config.model_config(config.tokenizer.vocab_size)
    windows = TrainWindows(Concat(reader, model_config.seq_len), config.seed, config.data.block_windows)
    per_step = config.training.windows_per_step(model_config.seq_len)
    batches = iter(
        DataLoader(windows, batch_sampler=StepSampler(1 << 30, per_step, 0, 1, 0), collate_fn=lambda batch: batch)
    )
    torch.manual_seed(config.seed)
    model = TopKTransformer(model_config)
    optimizer = build_optimizer(model, config.optimizer)

    def step() -> None:
        ids = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
