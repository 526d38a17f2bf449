"""Preparation: split by text, cached by choice, on from where it stopped, one writer at a time."""

import errno
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import filelock
import numpy as np
import pytest

from topklm.data import Choice, Document, Files, Mixture, Split, Tokenizer, TokenizerConfig, Tokens, TokenStore, prepare
from topklm.data import prepare as prepare_function
from topklm.data.builder import StoreBuilder
from topklm.data.compression import xz_bits_per_byte
from topklm.data.presence import Presence, present
from topklm.data.sources import is_validation
from topklm.data.sources.mixture import Part
from topklm.errors import UserError

CONFIG = TokenizerConfig(vocab_size=300)
SPLIT = Split(0.1)
SMALL = Split(0.1, shard_tokens=500)


def texts(prepared, reader):
    store = reader.store
    return [prepared.tokenizer.decode(store.read(e["first"], e["tokens"] + 1).tolist()) for e in store.documents()]


def test_every_document_is_on_one_side_in_order(corpus, prepared):
    train, validation = (texts(prepared, reader) for reader in (prepared.train, prepared.validation))
    assert train == [d.text for d in corpus if not is_validation(d, 0.1)]
    assert validation == [d.text for d in corpus if is_validation(d, 0.1)]
    assert 0.04 < len(validation) / len(corpus) < 0.2


def test_equal_texts_fall_on_the_same_side():
    twins = [(Document(f"a{i}", f"text {i}"), Document(f"b{i}", f"text {i}")) for i in range(200)]
    assert all(is_validation(a, 0.5) == is_validation(b, 0.5) for a, b in twins)
    assert 60 < sum(is_validation(a, 0.5) for a, _ in twins) < 140


def test_text_bytes_are_the_bytes_of_the_tokens(prepared):
    for reader in (prepared.train, prepared.validation):
        store = reader.store
        assert prepared.tokenizer.byte_lengths()[store.read(0, store.tokens)].sum() == store.manifest["text_bytes"]


def test_the_cache_is_used_and_a_new_choice_is_not_mistaken_for_it(corpus, list_source, tmp_path, monkeypatch):
    first = prepare(list_source(corpus), CONFIG, SPLIT, tmp_path)
    untouched = list_source(corpus)
    monkeypatch.setattr(untouched, "documents", lambda *_: pytest.fail("read again"))
    assert prepare(untouched, CONFIG, SPLIT, tmp_path).fingerprint == first.fingerprint
    others = [
        prepare(list_source(corpus, "list-2"), CONFIG, SPLIT, tmp_path),
        prepare(list_source(corpus), CONFIG, Split(0.2), tmp_path),
        prepare(list_source(corpus), CONFIG, Split(0.1, hold_out_tokens=50), tmp_path),
        prepare(list_source(corpus), CONFIG, SMALL, tmp_path),
        prepare(list_source(corpus), TokenizerConfig(vocab_size=290), SPLIT, tmp_path),
        prepare(list_source(corpus), TokenizerConfig(name="bytes"), SPLIT, tmp_path),
    ]
    assert len({p.fingerprint for p in [first, *others]}) == 7


def test_a_given_tokenizer_is_used(corpus, list_source, prepared, tmp_path):
    prepared.tokenizer.save(tmp_path / "tokenizer.json")
    config = TokenizerConfig(name="file", path=str(tmp_path / "tokenizer.json"))
    given = prepare(list_source(corpus), config, SPLIT, tmp_path / "cache")
    assert given.tokenizer.fingerprint == prepared.tokenizer.fingerprint
    ours, theirs = given.train.store, prepared.train.store
    assert (ours.read(0, ours.tokens) == theirs.read(0, theirs.tokens)).all()


def test_the_tokenizer_is_trained_on_the_beginning_of_the_training_split(corpus, list_source, tmp_path):
    changed = corpus[:200] + [Document("other", "zzz zzz zzz " * 50)] * 100
    both = [
        Choice(list_source(d, f"list-{i}"), TokenizerConfig(vocab_size=300, train_bytes=5000), SPLIT, tmp_path)
        for i, d in enumerate((corpus, changed))
    ]
    assert both[0].tokenizer.fingerprint == both[1].tokenizer.fingerprint


@pytest.mark.parametrize("documents", [[], [Document("a", "  \n")]])
@pytest.mark.parametrize("config", [CONFIG, TokenizerConfig(name="bytes")])
def test_nothing_to_train_on(list_source, tmp_path, documents, config):
    with pytest.raises(UserError, match="holds no text"):
        prepare(list_source(documents), config, SPLIT, tmp_path)


def test_an_empty_split(list_source, tmp_path):
    with pytest.raises(UserError, match="leaves the validation split of list empty"):
        prepare(list_source([Document("a", "some text"), Document("b", "more")]), CONFIG, Split(1e-9), tmp_path)


def test_a_single_document_cannot_be_split(list_source, tmp_path):
    with pytest.raises(UserError, match="holds one document, .* cut the text into several"):
        prepare(list_source([Document("a", "some text")]), CONFIG, SPLIT, tmp_path)


def test_a_cache_in_the_home_folder(list_source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    choice = Choice(list_source([Document("a", "some text")]), TokenizerConfig(name="bytes"), SPLIT, "~/cache")
    assert choice.folder.parent == tmp_path / "cache"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"repo": "gpt2"}, "tokenizer.repo=gpt2 is used by tokenizer=hub, not by bpe: add tokenizer=hub"),
        ({"name": "bytes", "revision": "x"}, "tokenizer.revision=x is used by tokenizer=hub, not by bytes"),
        ({"end_of_text": "<end>"}, "tokenizer.end_of_text=<end>: tokenizer=bpe has its own"),
    ],
)
def test_a_setting_that_another_tokenizer_has(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        TokenizerConfig(**settings)


def test_held_out_documents_are_kept_up_to_a_limit_and_never_trained_on(corpus, list_source, tmp_path):
    limited = prepare(list_source(corpus), CONFIG, Split(0.1, hold_out_tokens=100, shard_tokens=500), tmp_path)
    whole = prepare(list_source(corpus), CONFIG, SMALL, tmp_path)
    kept, every = texts(limited, limited.validation), texts(whole, whole.validation)
    assert 0 < len(kept) < len(every)
    assert kept == every[: len(kept)]
    assert 100 < limited.validation.store.tokens < 300
    assert texts(limited, limited.train) == texts(whole, whole.train)


def test_what_is_left_out_is_counted_once_over_two_sittings(corpus, list_source, tmp_path):
    documents = [d for i, document in enumerate(corpus) for d in ([Document(f"e{i}", " ")] * (i % 3 == 0) + [document])]
    choice = Choice(list_source(documents), CONFIG, SMALL, tmp_path)
    builder = StoreBuilder(choice.folder, choice.source, choice.tokenizer, SMALL)
    builder.advance()
    builder.advance()
    builder.close()
    before = TokenStore(choice.folder / "train", growing=True).manifest["notes"]["skipped"]["empty"]
    assert 0 < before < 100
    choice.build()
    assert TokenStore(choice.folder / "train").manifest["notes"]["skipped"] == {"empty": 100}


def test_what_was_left_out_is_told_when_a_run_ends_also_of_a_store_that_was_there(
    list_source, corpus, tmp_path, caplog
):
    for _ in range(2):
        caplog.clear()
        prepare(list_source([Document("e", " "), *corpus]), CONFIG, SPLIT, tmp_path).close()
        assert [record.message for record in caplog.records] == ["left out of list: 1 empty"]


def test_tokens_inside_a_mixture_must_be_the_tokenizers_too(list_source, corpus, tmp_path):
    np.save(tmp_path / "ids.npy", np.array([7, 1, 2, 7, 3, 7], dtype=np.uint16))
    mixture = Mixture({"text": Part(list_source(corpus)), "ids": Part(Tokens(str(tmp_path / "ids.npy"), eot_id=7))})
    with pytest.raises(UserError, match="data.eot_id=7, but the tokenizer's end-of-text token is 0"):
        Choice(mixture, TokenizerConfig(name="bytes"), SPLIT, tmp_path)


class Killed(BaseException):
    pass


class Dying:
    """A source that is cut off after so many documents."""

    name, fingerprint = "list", "list-1"

    def __init__(self, documents, after):
        self._documents, self.last, self.skipped = documents, after, {}

    def documents(self, after=None):
        for document in self._documents(after):
            yield document
            if document.cursor >= self.last:
                raise Killed


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_a_builder_killed_again_and_again_leaves_the_same_stores(corpus, list_source, tmp_path, processes):
    source = list_source(corpus)
    whole = prepare(source, CONFIG, SMALL, tmp_path / "whole")
    choice = Choice(source, CONFIG, SMALL, tmp_path / "killed")
    for stop in (50, 130, 131, 250):
        builder = StoreBuilder(choice.folder, Dying(source.documents, stop), choice.tokenizer, SMALL, processes)
        with pytest.raises(Killed):
            builder.run()
        if processes == 2:
            builder.close()  # a real kill takes the processes along
    choice.build(processes)
    for name in ("train", "validation"):
        ours, theirs = (TokenStore(p / name) for p in (choice.folder, whole.train.store.path.parent))
        ours.verify()
        assert ours.read(0, ours.tokens).tolist() == theirs.read(0, theirs.tokens).tolist()
        assert list(ours.documents()) == list(theirs.documents())


def test_a_full_disk_leaves_a_store_that_is_true(corpus, list_source, tmp_path, monkeypatch):
    import topklm.data.store_writer as module

    source, real, calls = list_source(corpus), module.write_json, []

    def full(path, content):
        calls.append(path)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(UserError, match=r"Cannot write .*No space left on device.*data.cache_dir"):
        prepare(source, CONFIG, SMALL, tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    store = TokenStore(folder / "train", growing=True)
    assert store.tokens > 0
    store.verify()
    monkeypatch.undo()
    whole = prepare(source, CONFIG, SMALL, tmp_path / "other")
    again = prepare(source, CONFIG, SMALL, tmp_path)
    assert texts(again, again.train) == texts(whole, whole.train)


class SlowSource:
    name = fingerprint = "slow"

    def __init__(self, documents, log):
        self._documents, self.log, self.skipped = documents, log, {}

    def documents(self, after=None):
        assert after is None
        with open(self.log, "a") as file:
            file.write("read\n")
        time.sleep(0.5)
        yield from self._documents


def _prepare_in_child(documents, folder):
    prepare_function(SlowSource(documents, folder / "log"), TokenizerConfig(name="bytes"), SPLIT, folder / "cache")


def test_two_processes_make_it_once(corpus, tmp_path):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_prepare_in_child, args=(corpus, tmp_path)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert (tmp_path / "log").read_text().splitlines() == ["read"]


# --- the yardstick, and caches that cannot be written -----------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, TokenizerConfig(name="bytes")])
def test_xz_is_measured_on_the_texts_themselves_without_the_source(corpus, list_source, tmp_path, config):
    corpus = [*corpus, *(Document(f"odd{i}", f"{i} é 漢 🦊\r\n <|endoftext|>\x00 \u2028") for i in range(40))]
    prepare(list_source(corpus), config, SMALL, tmp_path)
    source = list_source(corpus)
    source.documents = lambda *_: pytest.fail("read again")
    for path in tmp_path.glob("*/xz.json"):
        path.unlink()
    found = prepare(source, config, SMALL, tmp_path).xz
    sides = [[d.text for d in corpus if is_validation(d, 0.1) == side] for side in (False, True)]
    assert found == xz_bits_per_byte(*sides)
    assert json.loads(next(tmp_path.glob("*/xz.json")).read_text()) == found


@pytest.fixture
def shared_folder():
    """A folder that any user can reach."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextmanager
def read_only(folder):
    """Nothing below the folder can be changed meanwhile, by a superuser neither: it is nobody for so long."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize("background", [False, True])
def test_a_complete_cache_that_cannot_be_written_is_enough(corpus, list_source, shared_folder, caplog, background):
    first = prepare(list_source(corpus), CONFIG, SPLIT, shared_folder)
    (folder,) = shared_folder.iterdir()
    (folder / "xz.json").unlink()
    (folder / "readers").mkdir(exist_ok=True)
    source = list_source(corpus)
    source.documents = lambda *_: pytest.fail("read again")
    caplog.set_level("INFO")
    with read_only(shared_folder):
        with pytest.raises(PermissionError):
            (folder / "new").touch()
        again = prepare(source, CONFIG, SPLIT, shared_folder, background=background)
        assert again.train.wait_for(0, 100)
        assert again.train.read(0, 100).tolist() == first.train.read(0, 100).tolist()
        again.train.forget()
        again.close()
    assert again.xz == (None if background else first.xz)
    said = [record.message for record in caplog.records if "xz" in record.message]
    assert len(said) == (0 if background else 1)


def test_a_reader_of_a_read_only_file_system_takes_its_word_back(prepared, monkeypatch):
    prepared.train.read(0, 10)
    path = prepared.train._presence.path

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        prepared.train.forget()
    path.unlink()


# --- waiting for others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["tokenizer.lock", "writer.lock"])
@pytest.mark.parametrize("known", [True, False])
def test_who_waits_for_another_says_once_for_whom(corpus, list_source, tmp_path, monkeypatch, caplog, lock, known):
    monkeypatch.setattr("topklm.data.locks.SILENT_SECONDS", 0.2)
    choice = Choice(list_source(corpus), TokenizerConfig(name="bytes"), SPLIT, tmp_path)
    if lock == "tokenizer.lock":
        (choice.folder / "tokenizer.json").unlink()
    if known:
        with monkeypatch.context() as there:
            there.setattr("socket.gethostname", lambda: "elsewhere")
            Presence(choice.folder, "writer", pid=4321).say(working=True)
            Presence(choice.folder, "writer", pid=1234).say(working=False)  # waits, too
    held = filelock.FileLock(choice.folder / lock)
    held.acquire()
    waiting = threading.Thread(
        target=lambda: prepare(list_source(corpus), TokenizerConfig(name="bytes"), SPLIT, tmp_path)
    )
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    held.release()
    waiting.join(60)
    assert not waiting.is_alive()
    (said,) = [record.message for record in caplog.records]
    who = "process 4321 on elsewhere" if known else "another process, which has not said who it is,"
    assert said == (
        f"waiting for {who} to end: it works in {choice.folder}. End it, or choose another data.cache_dir, if it "
        f"should not."
    )


def test_the_wait_ends_when_another_has_done_the_work(corpus, list_source, tmp_path, monkeypatch):
    """A writer under a budget holds the lock as long as its run lives."""
    monkeypatch.setattr("topklm.data.locks.SILENT_SECONDS", 0.2)
    finished = prepare(list_source(corpus), TokenizerConfig(name="bytes"), SPLIT, tmp_path / "a")
    choice = Choice(list_source(corpus), TokenizerConfig(name="bytes"), SPLIT, tmp_path / "b")
    with filelock.FileLock(choice.folder / "writer.lock"):
        waiting = threading.Thread(target=choice.build)
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        shutil.copytree(finished.train.store.path.parent, choice.folder, dirs_exist_ok=True)
        waiting.join(20)
        assert not waiting.is_alive()


def test_a_tokenizer_of_the_hub_is_kept_for_when_there_is_no_network(
    corpus, list_source, tmp_path, monkeypatch, caplog
):
    config = TokenizerConfig(name="hub", repo="someone/small")
    there = Tokenizer.train([document.text for document in corpus], 300)
    with monkeypatch.context() as network:
        network.setattr(Tokenizer, "from_hub", lambda *_: there)
        first = prepare(list_source(corpus), config, SPLIT, tmp_path)

    def unreachable(*_):
        raise UserError("The tokenizer someone/small cannot be had.")

    monkeypatch.setattr(Tokenizer, "from_hub", unreachable)
    again = prepare(list_source(corpus), config, SPLIT, tmp_path)
    assert again.fingerprint == first.fingerprint
    assert "cannot be had. The copy in" in caplog.text
    with pytest.raises(UserError, match="cannot be had"):
        prepare(list_source(corpus), config, SPLIT, tmp_path / "elsewhere")


def test_who_writes_says_so(corpus, list_source, tmp_path):
    """So that readers do not take the writer for dead, and those who wait know for whom."""
    seen = []

    class Looking(list_source):
        def documents(self, after=None):
            seen.extend(who["pid"] for who in present(next(tmp_path.iterdir()), "writer"))
            yield from super().documents(after)

    prepare(Looking(corpus), CONFIG, SPLIT, tmp_path)
    assert seen == [os.getpid()] * 2  # for the tokenizer, and for the store
    assert present(next(tmp_path.iterdir()), "writer") == []


# --- errors of a source, and what it left out -------------------------------------------------------------------------


class Missing:
    """A source of a user's own whose file is not there, or goes away."""

    name, skipped = "mine", {}

    def __init__(self, path, fingerprint="mine"):
        self.path, self._fingerprint = path, fingerprint

    @property
    def fingerprint(self):
        return self._fingerprint or self.path.read_text()

    def documents(self, after=None):
        yield from (Document(f"{i}", f"text {i} of some length", cursor=i + 1) for i in range(after or 0, 150))
        with open(self.path) as file:
            yield from (Document(line, line) for line in file)

    def share(self, cursor):
        return None


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("config", [CONFIG, TokenizerConfig(name="bytes")])
@pytest.mark.parametrize("within", ["alone", "mixture", "fingerprint"])
def test_an_error_of_a_source_is_not_told_as_one_of_writing(tmp_path, config, background, within):
    source = Missing(tmp_path / "gone.txt", None if within == "fingerprint" else "mine")
    if within == "mixture":
        source = Mixture({"part": Part(source)})
    gone = rf"^The source mine cannot be read: No such file or directory \({tmp_path / 'gone.txt'}\)\.$"
    with pytest.raises(UserError, match=gone):
        prepared = prepare(source, config, Split(0.1, shard_tokens=500), tmp_path / "cache", background=background)
        try:
            prepared.train.wait_until_complete()
        finally:
            prepared.close()
    if within != "fingerprint" and config.name == "bytes":
        stores = [TokenStore(path.parent, growing=True) for path in tmp_path.glob("cache/*/train/manifest.json")]
        assert stores[0].tokens > 2000  # what came before is kept


def test_a_store_that_lacks_what_was_skipped_is_not_taken_silently_for_whole(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text(
        "".join(f'{{"text": "text {i}"}}\n' for i in range(100)) + "{\n{}\n" + '{"text": ""}'
    )

    def warnings(on_error, within=lambda source: source):
        caplog.clear()
        source = within(Files(str(tmp_path / "a.jsonl"), on_error=on_error))
        prepare(source, TokenizerConfig(name="bytes"), SPLIT, tmp_path / "cache")
        return [record.message for record in caplog.records]

    def mixture(source):
        return Mixture({"my part": Part(source)})

    for within, lacks in ((lambda source: source, "1 line, 1 row"), (mixture, "1 line of my part, 1 row of my part")):
        assert warnings("skip", within) == []
        assert warnings("skip", within) == []
        (said,) = warnings("raise", within)
        assert said.startswith("data.on_error=raise, but /")
        assert f" was made with data.on_error=skip and lacks {lacks} that could not be read: mend" in said
