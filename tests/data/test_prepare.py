"""Preparation: split by text, cached by choice, whole or absent."""

import multiprocessing
import time

import pytest

from topklm.data import Document, TokenizerConfig, prepare
from topklm.data import prepare as prepare_function
from topklm.data.source import is_validation
from topklm.errors import UserError

CONFIG = TokenizerConfig(vocab_size=300)


def texts(prepared, store):
    return [prepared.tokenizer.decode(store.read(e["first"], e["tokens"]).tolist()) for e in store.documents()]


def test_every_document_is_on_one_side_in_order(corpus, prepared):
    train, validation = (texts(prepared, store) for store in (prepared.train, prepared.validation))
    assert train == [d.text for d in corpus if not is_validation(d, 0.1)]
    assert validation == [d.text for d in corpus if is_validation(d, 0.1)]
    assert 0.04 < len(validation) / len(corpus) < 0.2


def test_equal_texts_fall_on_the_same_side():
    twins = [(Document(f"a{i}", f"text {i}"), Document(f"b{i}", f"text {i}")) for i in range(200)]
    assert all(is_validation(a, 0.5) == is_validation(b, 0.5) for a, b in twins)
    assert 60 < sum(is_validation(a, 0.5) for a, _ in twins) < 140


def test_text_bytes_are_the_bytes_of_the_tokens(prepared):
    for store in (prepared.train, prepared.validation):
        assert prepared.tokenizer.byte_lengths()[store.read(0, store.tokens)].sum() == store.manifest["text_bytes"]


def test_the_cache_is_used_and_a_new_choice_is_not_mistaken_for_it(corpus, list_source, tmp_path, monkeypatch):
    first = prepare(list_source(corpus), CONFIG, 0.1, tmp_path)
    untouched = list_source(corpus)
    monkeypatch.setattr(untouched, "documents", lambda: pytest.fail("read again"))
    assert prepare(untouched, CONFIG, 0.1, tmp_path).fingerprint == first.fingerprint
    others = [
        prepare(list_source(corpus, "list-2"), CONFIG, 0.1, tmp_path),
        prepare(list_source(corpus), CONFIG, 0.2, tmp_path),
        prepare(list_source(corpus), TokenizerConfig(vocab_size=290), 0.1, tmp_path),
    ]
    assert len({p.fingerprint for p in [first, *others]}) == 4


def test_a_given_tokenizer_is_used(corpus, list_source, prepared, tmp_path):
    prepared.tokenizer.save(tmp_path / "tokenizer.json")
    given = prepare(
        list_source(corpus), TokenizerConfig(path=str(tmp_path / "tokenizer.json")), 0.1, tmp_path / "cache"
    )
    assert given.tokenizer.fingerprint == prepared.tokenizer.fingerprint
    assert (given.train.read(0, given.train.tokens) == prepared.train.read(0, prepared.train.tokens)).all()


@pytest.mark.parametrize("documents", [[], [Document("a", "  \n")]])
def test_nothing_to_train_on(list_source, tmp_path, documents):
    with pytest.raises(UserError, match="holds no text"):
        prepare(list_source(documents), CONFIG, 0.1, tmp_path)


def test_an_empty_split(list_source, tmp_path):
    with pytest.raises(UserError, match="leaves the validation split of list empty"):
        prepare(list_source([Document("a", "some text")]), CONFIG, 1e-9, tmp_path)


def test_a_failure_leaves_nothing_behind(corpus, list_source, tmp_path, monkeypatch):
    module = __import__("sys").modules["topklm.data.prepare"]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "xz_bits_per_byte", full)
    with pytest.raises(UserError, match=r"Cannot write .*No space left on device.*data.cache_dir"):
        prepare(list_source(corpus), CONFIG, 0.1, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    monkeypatch.undo()
    prepare(list_source(corpus), CONFIG, 0.1, tmp_path)


class SlowSource:
    name = fingerprint = "slow"

    def __init__(self, documents, log):
        self._documents, self.log = documents, log

    def documents(self):
        with open(self.log, "a") as file:
            file.write("read\n")
        time.sleep(0.5)
        yield from self._documents


def _prepare_in_child(documents, folder):
    prepare_function(SlowSource(documents, folder / "log"), CONFIG, 0.1, folder / "cache")


def test_two_processes_make_it_once(corpus, tmp_path):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_prepare_in_child, args=(corpus, tmp_path)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert (tmp_path / "log").read_text() == "read\n"
