"""What the data scripts do and show: preparing token stores beforehand, training a tokenizer, a data card."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..errors import UserError
from ..files import disk_errors, write_json
from . import builder
from .card_plot import plot_card
from .card_text import card_text
from .prepare import Choice, training_texts
from .sources import Source, is_validation, read_documents
from .store import TokenStore
from .survey import data_card
from .tokenizer import Tokenizer
from .tokenizer_config import TokenizerConfig

LINE_SECONDS = 10.0  # between plain lines, where there is no terminal
CHECK_BYTES = 1_000_000  # of held-out text, on which a tokenizer is tried


def prepare_data(choice: Choice, processes: int, verify: bool) -> None:
    """Writes the token stores of a choice to the end, with a progress bar, and says what is in them.

    Args:
        processes: of tokenizing. verify: read all shards and compare their checksums, those that were there included.

    Raises:
        UserError: the source cannot be read, the disk is full, a shard is damaged.
    """
    console = Console()
    console.print(f"source {choice.source.name}, tokenizer {choice.config.described}", highlight=False)
    choice.warn_of_skipped()
    if choice.is_complete:
        console.print("it is all there already")
    else:
        with _Bar(console, choice.source) as bar:
            choice.build(processes, on_progress=bar.show)
    table = Table("split", "documents", "tokens", "text bytes", "bytes per token", "shards")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in ("train", "validation"):
        store = TokenStore(choice.folder / name, choice.tokenizer.fingerprint)
        if verify:
            store.verify()
        tokens, text_bytes = store.manifest["tokens"], store.manifest["text_bytes"]
        counts = [f"{n:,}" for n in (store.manifest["documents"], tokens, text_bytes)]
        table.add_row(name, *counts, f"{text_bytes / tokens:.3f}", str(len(store.shards)))
        skipped = store.manifest["notes"].get("skipped")
        if skipped:
            table.caption = f"left out: {builder.describe_skipped(skipped)}"
    console.print(table)
    if verify:
        console.print("every checksum holds")
    console.print(f"token store      [bold]{choice.folder}[/]", highlight=False, soft_wrap=True)


class _Bar:
    """Progress of a builder, on a terminal as a bar and elsewhere as a line now and then."""

    def __init__(self, console: Console, source: Source) -> None:
        self.console, self.source = console, source
        self._began = self._said = time.monotonic()
        self._first_tokens: int | None = None
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("<"))
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._task = self._progress.add_task("tokenizing", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: builder.Progress) -> None:
        now = time.monotonic()
        self._first_tokens = done.tokens if self._first_tokens is None else self._first_tokens
        if now - self._said < (0.2 if self.console.is_terminal else LINE_SECONDS):
            return
        self._said = now
        rate = (done.tokens - self._first_tokens) / (now - self._began)
        text = f"{done.documents:,} documents  {done.tokens:,} tokens  {rate:,.0f} tokens/s"
        share = self.source.share(done.cursor)
        if self.console.is_terminal:
            self._progress.update(self._task, description=text, completed=share or 0, total=1 if share else None)
        else:
            self.console.print(text + (f"  {share:.0%}" if share else ""), highlight=False, soft_wrap=True)


def train_tokenizer(source: Source, config: TokenizerConfig, val_fraction: float, out: Path, overwrite: bool) -> None:
    """Trains a byte-level BPE on the training split of a source, writes it to ``out``, and says how well it does on
    held-out text.

    Raises:
        UserError: there is no text, ``out`` is there already, or it cannot be written.
    """
    console = Console()
    if out.exists() and not overwrite:
        raise UserError(f"out={out} exists: choose another name, or add overwrite=true.")
    if config.name != "bpe":
        raise UserError(f"tokenizer={config.name} is not trained: use tokenizer=bpe.")
    read = _Counter()
    with console.status("reading text") if console.is_terminal else _nothing():
        texts = list(read.count(training_texts(source, config, val_fraction)))
    console.print(f"{len(texts):,} documents, {read.size:,} bytes of {source.name}", highlight=False)
    tokenizer = Tokenizer.train(texts, config.vocab_size, show_progress=console.is_terminal)
    held_out = _Counter()
    sample = list(held_out.count(_held_out(source, val_fraction)))  # read before anything is written: it may be broken
    with disk_errors(out, "Free some space, or choose another place with out=..., and run the same command again."):
        out.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(out)
    tokens = sum(map(len, tokenizer.encode(sample)))
    if tokens:
        console.print(
            f"{held_out.size / tokens:.3f} bytes per token on {held_out.size:,} held-out bytes", highlight=False
        )
    console.print(
        f"{tokenizer.vocab_size:,} tokens in [bold]{out}[/]: tokenizer=file tokenizer.path={out}",
        highlight=False,
        soft_wrap=True,
    )


def write_card(choice: Choice, limit: int | None, seed: int, folder: Path, config: dict[str, Any]) -> None:
    """Writes ``card.json``, ``card.txt`` and ``card.png`` of a choice into ``folder``, and prints the card.

    Args:
        limit: most documents to read, None for all. seed: of the documents shown. config: to keep with the numbers.
    """
    console = Console()
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TextColumn("documents"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=limit)
        card = data_card(
            choice.source,
            choice.tokenizer,
            choice.split,
            limit,
            seed,
            choice.config.described,
            lambda read: bar.update(task, completed=read),
        )
    with disk_errors(folder, "Free some space, or choose another place with hydra.run.dir=..."):
        write_json(folder / "card.json", {**card.to_json(), "config": config})
        with open(folder / "card.txt", "w", encoding="utf-8") as file:
            Console(file=file, width=120).print(card_text(card))
        plot_card(card, folder / "card.png")
    console.print(card_text(card))
    console.print(f"written to {folder}", markup=False, highlight=False, soft_wrap=True)


class _Counter:
    """Counts the bytes of texts that pass."""

    size = 0

    def count(self, texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            self.size += len(text.encode("utf-8", "surrogatepass"))
            yield text


def _held_out(source: Source, val_fraction: float) -> Iterator[str]:
    left = CHECK_BYTES
    for document in read_documents(source):
        if not document.is_empty and is_validation(document, val_fraction):
            yield document.text
            left -= document.size
            if left <= 0:
                return


@contextmanager
def _nothing() -> Iterator[None]:
    yield
