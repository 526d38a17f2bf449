"""From a source to a tokenizer and two token stores, cached on disk by choice and shared by all runs.

The cache folder of a choice (source, split, tokenizer) holds ``tokenizer.json``, ``train/`` and ``validation/``. They
are written to the end before training, or in the background while training goes on; either way what is there is used,
and what is missing is written from where the last writer ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import disk_errors
from .background import BackgroundWriter, WriterTask
from .builder import Progress, Split, StoreBuilder, describe_skipped
from .compression import xz_of_stores
from .locks import exclusive
from .presence import Presence
from .processes import cores
from .reader import StoreReader
from .sources import Mixture, Source, Tokens, is_validation, read_documents, reading
from .store import MANIFEST, TokenStore
from .tokenizer import Tokenizer
from .tokenizer_config import TokenizerConfig

log = logging.getLogger(__name__)

LAYOUT = 2  # raise when a change of this code changes what the cache holds
DISK_ADVICE = "Free some space, or choose another place with data.cache_dir=..., and run the same command again."


@dataclass(frozen=True)
class Prepared:
    """What training needs of the data.

    Attributes:
        tokenizer: encodes and decodes.
        train, validation: the stores, through readers that wait for what is still being written.
        fingerprint: of source, split and tokenizer together.
        sources: names of the parts of a mixture; one empty name elsewhere.
        xz: bits per byte of ``xz -9e`` on the validation text, ``plain`` and ``primed`` (see compression.py); None for
            large text, and while it is still being written.
        writer: at work in the background, or None. presence: this run's, for the writers of others.
    """

    tokenizer: Tokenizer
    train: StoreReader
    validation: StoreReader
    fingerprint: str
    sources: list[str]
    xz: dict[str, float] | None
    writer: BackgroundWriter | None = None
    presence: Presence | None = None

    def check(self) -> None:
        """Raises UserError with the cause if the background writer has died."""
        if self.writer is not None:
            self.writer.check()

    def close(self) -> None:
        """Ends the background writer, and says what it left out."""
        if self.writer is not None:
            self.writer.stop()
        for reader in (self.train, self.validation):
            reader.forget()
        if self.presence is not None:
            self.presence.leave()
        self.train.store.refresh()
        skipped = self.train.store.manifest.get("notes", {}).get("skipped")
        if skipped:
            log.warning("left out of %s: %s", self.train.store.manifest["source"], describe_skipped(skipped))


class Choice:
    """A choice of source, split and tokenizer, and the cache folder that belongs to it.

    Args:
        source, config, split: the choice. cache_dir: where all choices are kept.

    Attributes:
        folder, fingerprint: of the choice. tokenized: sources in it that come as tokens. tokenizer: trained, if need
            be, when the choice is made.
    """

    def __init__(self, source: Source, config: TokenizerConfig, split: Split, cache_dir: str | Path) -> None:
        self.source, self.config, self.split = source, config, split
        cache_dir = Path(cache_dir).expanduser()
        given = self._given(cache_dir)
        which = given.fingerprint if given else [config.vocab_size, config.train_bytes]
        with reading(source):
            choice = [LAYOUT, source.fingerprint, *vars(split).values(), which]
        self.fingerprint = hashlib.sha256(json.dumps(choice).encode()).hexdigest()[:12]
        kind = f"bpe{config.vocab_size}" if config.name == "bpe" else config.name
        self.folder = cache_dir.absolute() / f"{source.name}-{kind}-{self.fingerprint}"
        with disk_errors(self.folder, DISK_ADVICE):
            self.tokenizer = self._tokenizer(given)
        self.tokenized = [leaf for leaf in _leaves(source) if isinstance(leaf, Tokens)]
        for leaf in self.tokenized:
            if leaf.eot_id == self.tokenizer.eot_id:
                continue
            raise UserError(
                f"data.eot_id={leaf.eot_id}, but the tokenizer's end-of-text token is {self.tokenizer.eot_id}: "
                f"choose the tokenizer that these tokens were made with."
            )

    def _given(self, cache_dir: Path) -> Tokenizer | None:
        """The tokenizer, unless it is to be trained. One of the hub is kept, for when there is no network."""
        if self.config.name != "hub":
            return self.config.given()
        which = f"{self.config.repo}-{self.config.revision or 'latest'}".replace("/", "--")
        kept = cache_dir / "tokenizers" / f"{which}.json"
        try:
            tokenizer = self.config.given()
            assert tokenizer is not None
        except UserError as error:
            if not kept.exists():
                raise
            log.warning("%s The copy in %s is used.", error, kept)
            return Tokenizer.load(kept, self.config.end_of_text)
        with contextlib.suppress(OSError):  # a read-only cache
            kept.parent.mkdir(parents=True, exist_ok=True)
            tokenizer.save(kept)
        return tokenizer

    def _tokenizer(self, given: Tokenizer | None) -> Tokenizer:
        path = self.folder / "tokenizer.json"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder / "tokenizer.lock", path.exists):
                if not path.exists():
                    tokenizer = given or self._train()
                    tokenizer.save(path)
        return Tokenizer.load(path, self.config.end_of_text)

    def _train(self) -> Tokenizer:
        texts = training_texts(self.source, self.config, self.split.val_fraction)
        return Tokenizer.train(texts, self.config.vocab_size)

    @property
    def is_complete(self) -> bool:
        """Whether both stores are complete and all their shards there."""
        for name in ("train", "validation"):
            if not (self.folder / name / MANIFEST).exists():
                return False
            store = TokenStore(self.folder / name, self.tokenizer.fingerprint, growing=True)
            if not store.complete or not all(map(store.has, range(len(store.shards)))):
                return False
        return True

    def build(self, processes: int = 0, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Writes all that is missing. Waits for another process that writes the same."""
        done = lambda: self.is_complete  # noqa: E731
        with disk_errors(self.folder, DISK_ADVICE), exclusive(self.folder / "writer.lock", done):
            if self.is_complete:
                return
            builder = StoreBuilder(self.folder, self.source, self.tokenizer, self.split, processes, on_progress)
            try:
                builder.run()
            finally:
                builder.close()

    def warn_of_skipped(self) -> None:
        """Says so where the training store, made with data.on_error=skip, lacks what data.on_error=raise would have
        stopped at: ``on_error`` makes no other choice, so both use one store."""
        store = TokenStore(self.folder / "train", self.tokenizer.fingerprint, growing=True)
        skipped = store.manifest.get("notes", {}).get("skipped", {})
        lacking = {kind: count for kind, count in skipped.items() if kind != "empty" and _raises(self.source, kind)}
        if lacking:
            log.warning(
                "data.on_error=raise, but %s was made with data.on_error=skip and lacks %s that could not be read: "
                "mend the source, delete that folder, and it is made again.",
                self.folder,
                describe_skipped(lacking),
            )

    def xz(self) -> dict[str, float] | None:
        """The figures of compression.py, of complete stores of text."""
        if self.tokenized:
            return None
        train, validation = (
            TokenStore(self.folder / name, self.tokenizer.fingerprint) for name in ("train", "validation")
        )
        return xz_of_stores(self.folder / "xz.json", train, validation, self.tokenizer)


def _raises(source: Source, kind: str) -> bool:
    """Whether a source, as it is set now, would raise at what ``skipped`` counts as ``kind``."""
    if isinstance(source, Mixture):
        parts = [(part.source, f" of {name}") for name, part in source.parts.items()]
        return any(_raises(part, kind.removesuffix(end)) for part, end in parts if kind.endswith(end))
    return getattr(source, "on_error", None) == "raise"


def _leaves(source: Source) -> list[Source]:
    return source.leaves if isinstance(source, Mixture) else [source]


def training_texts(source: Source, config: TokenizerConfig, val_fraction: float) -> Iterator[str]:
    """Texts of the training split from the beginning, up to the tokenizer's ``train_bytes``.

    Raises:
        UserError: there are none, or they come as tokens.
    """
    left = config.train_bytes
    found = False
    for document in read_documents(source):
        if document.ids is not None:
            raise UserError(
                f"The source {source.name} holds tokens, not text to train a tokenizer on: use tokenizer=file with the "
                f"tokenizer that made them."
            )
        if document.is_empty or is_validation(document, val_fraction):
            continue
        found = True
        yield document.text
        left -= document.size
        if left <= 0:
            return
    if not found:
        raise UserError(f"The source {source.name} holds no text to train a tokenizer on.")


def prepare(
    source: Source,
    config: TokenizerConfig,
    split: Split,
    cache_dir: str | Path,
    *,
    background: bool = False,
    writers: int | None = None,
    cache_gb: float | None = None,
) -> Prepared:
    """Opens the cached stores of this choice. What is missing is written first, or in the background.

    Args:
        background: return at once and write while the caller reads.
        writers: tokenizing processes; None takes one per core but one in the background, and all cores otherwise.
        cache_gb: most gigabytes of training tokens to keep on disk, in the background only.

    Raises:
        UserError: the source is empty or cannot be read, one split is empty, the disk is full, the cache is damaged.
    """
    choice = Choice(source, config, split, cache_dir)
    choice.warn_of_skipped()
    presence = Presence(choice.folder, "run")
    writer: BackgroundWriter | None = None
    try:
        # Said before looking what is there, so that nobody drops it afterwards: this run may have no writer to make it
        # again.
        presence.say(budget_bytes=None)
        complete = choice.is_complete
        if not complete and background:
            budget_bytes = None if cache_gb is None else int(cache_gb * 1e9)
            task = WriterTask(
                choice.folder,
                source,
                choice.tokenizer.inner.to_str(),
                config.end_of_text,
                split,
                writers or max(1, cores() - 1),
                budget_bytes,
            )
            writer = BackgroundWriter(task)
            writer.start()
            presence.say(budget_bytes=budget_bytes)
        elif not complete:
            choice.build(writers or 0)
        check = writer.check if writer is not None else None
        train, validation = (
            StoreReader(TokenStore(choice.folder / name, choice.tokenizer.fingerprint, growing=background), check)
            for name in ("train", "validation")
        )
        xz = None if background else choice.xz()
    except BaseException:
        presence.leave()
        if writer is not None:
            writer.stop()
        raise
    sources = list(source.parts) if isinstance(source, Mixture) else [""]
    return Prepared(choice.tokenizer, train, validation, choice.fingerprint, sources, xz, writer, presence)
