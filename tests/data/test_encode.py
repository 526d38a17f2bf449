"""Encoding: documents of any size in pieces, on any number of processes, with the ids of the whole text, in order."""

import multiprocessing
import random
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from topklm.data import Document, Embedded, Files, Tokenizer, encode
from topklm.data.encode import encode_documents, split_text
from topklm.data.processes import is_alive
from topklm.errors import UserError

# The words of Llama 3 and of its kin; GPT-2's are the library's own.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


SNIPPETS = [
    *"aé漢½Ⅷ1٣_'!.\n\t🦊\x00",
    "\u0301",
    "\u093e",
    "\u00a0",
    "\u2003",
    " ",
    " a",
    "b ",
    " c d ",
    " é½ ",
    "'s ",
    "  x",
]


@pytest.fixture(scope="module")
def real_text():
    """1.1 MB of articles in two languages, in paragraphs."""
    documents = [*Embedded(["en"]).documents()][:1100] + [*Embedded(["fr"]).documents()][:1100]
    random.Random(0).shuffle(documents)
    return "\n\n".join(f"{d.meta['title']}\n{d.text}" for d in documents)


@pytest.fixture(scope="module")
def tokenizer(real_text):
    return Tokenizer.train([real_text[:300_000]], 1500)


@pytest.fixture(params=["gpt2", "llama3", "runs of spaces"])
def any_tokenizer(request, tokenizer):
    again = Tokenizer.from_json(tokenizer.inner.to_str())
    if request.param == "llama3":
        again.inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
    if request.param == "runs of spaces":
        again.inner.add_tokens([" " * n for n in range(2, 6)])
    return Tokenizer(again.inner)


@pytest.fixture(autouse=True)
def parallelism(monkeypatch):
    """What ``processes=1`` sets is undone after each test."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")


def make_small(monkeypatch, piece, batch):
    monkeypatch.setattr(encode, "PIECE", piece)
    monkeypatch.setattr(encode, "BATCH", batch)


def is_letter(character):
    return character.isalnum() and not character.isdecimal()  # also numbers that are no digits, such as ½


def is_between_words(left, right):
    return is_letter(left[-1]) and right[0] == " " and is_letter(right[1:2])


def test_pieces_of_real_text(real_text, monkeypatch):
    make_small(monkeypatch, 1000, 4000)
    pieces = list(split_text(real_text))
    assert "".join(pieces) == real_text
    assert all(1000 < len(piece) <= 2000 for piece in pieces[:-1])
    assert len(pieces) > 900
    assert all(is_between_words(*pair) for pair in pairwise(pieces))
    assert np.median([len(piece) for piece in pieces]) < 1100  # cut at the first place that will do


@pytest.mark.parametrize("piece", [1000, 1 << 18])
def test_pieces_have_the_ids_of_the_whole(real_text, any_tokenizer, monkeypatch, piece):
    make_small(monkeypatch, piece, 4 * piece)
    assert len(list(split_text(real_text))) >= 3
    ((document, ids),) = encode_documents([Document("a", real_text)], any_tokenizer)
    assert document.text == real_text
    assert ids.dtype == np.uint32
    assert ids.tolist() == any_tokenizer.inner.encode(real_text).ids


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(st.sampled_from(SNIPPETS), max_size=40).map("".join), piece=st.integers(1, 12))
def test_pieces_of_any_text(any_tokenizer, monkeypatch, text, piece):
    make_small(monkeypatch, piece, 3 * piece)
    pieces = list(split_text(text))
    assert "".join(pieces) == text
    assert all(len(part) <= 2 * piece for part in pieces)
    ((_, ids),) = encode_documents([Document("a", text)], any_tokenizer)
    assert any_tokenizer.decode(ids) == text
    assert any_tokenizer.byte_lengths()[ids].sum() == len(text.encode())
    if all(is_between_words(*pair) for pair in pairwise(pieces)):
        assert ids.tolist() == any_tokenizer.inner.encode(text).ids


@pytest.mark.parametrize("text", ["x" * 100_000, "漢字" * 50_000, " " * 100_000, "\n" * 100_000, "a1 " * 30_000])
def test_text_without_words(tokenizer, monkeypatch, text):
    make_small(monkeypatch, 1000, 4000)
    ((_, ids),) = encode_documents([Document("a", text)], tokenizer)
    assert tokenizer.decode(ids) == text


class Letters:
    """Stands in for a tokenizer, a token a character, and remembers how much it was given at once."""

    def __init__(self):
        self.given = []

    def encode_arrays(self, texts):
        self.given.append(sum(map(len, texts)))
        return [np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in texts]


def test_a_document_of_forty_megabytes_on_one_line(tmp_path):
    sentence = "the river of the city, é 漢 🦊 and \\n what is \\u00e9 "
    with open(tmp_path / "a.jsonl", "w") as file:
        file.write('{"text": "before"}\n{"text": "')
        for number in range(7):
            file.write(sentence * 110_000 + str(number))
        file.write('"}\n{"text": "after"}\n')
    assert (tmp_path / "a.jsonl").stat().st_size > 40_000_000
    letters = Letters()
    (_, before), (document, ids), (_, after) = encode_documents(Files(str(tmp_path)).documents(), letters)
    spoken = sentence.replace("\\n", "\n").replace("\\u00e9", "é")
    assert document.text == "".join(spoken * 110_000 + str(number) for number in range(7))
    assert ids.tobytes().decode("utf-32-le") == document.text
    assert (len(before), len(after)) == (6, 5)
    assert max(letters.given) < encode.BATCH + 2 * encode.PIECE
    assert len(letters.given) > 30


def documents_of_all_lengths(text):
    """Long ones, short ones and empty ones by turns, and tokenized ones between."""
    rng = random.Random(1)
    documents = []
    for number in range(400):
        size = rng.choice([0, 1, 5, 50, 500, 30_000 if number % 40 == 0 else 100])
        first = rng.randrange(len(text) - size)
        documents.append(Document(f"d{number}", text[first : first + size], {"title": f"T{number}"}, number))
    documents[7] = Document("tokens", "", cursor=7, ids=np.array([3, 1, 2], np.uint16))
    documents[8] = Document("no tokens", "", cursor=8, ids=np.array([], np.uint32))
    documents[-1] = Document("last tokens", "", cursor=399, ids=np.array([70_000], np.uint32))
    return documents


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_any_number_of_processes_gives_the_same_in_order(real_text, tokenizer, monkeypatch, processes):
    make_small(monkeypatch, 5000, 20_000)
    documents = documents_of_all_lengths(real_text)
    encoded = list(encode_documents(iter(documents), tokenizer, processes))
    assert [document for document, _ in encoded] == documents
    for document, ids in encoded:
        if document.ids is not None:
            assert ids is document.ids
        else:
            assert ids.dtype == np.uint32
            assert ids.tolist() == tokenizer.inner.encode(document.text).ids


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_little(tokenizer, processes):
    assert list(encode_documents([], tokenizer, processes)) == []
    ((_, ids),) = encode_documents([Document("a", "")], tokenizer, processes)
    assert ids.tolist() == []


def test_processes_know_the_end_of_text_by_its_name():
    """And half a character reaches them, too."""
    renamed = Tokenizer.of_bytes().inner.to_str().replace("<|endoftext|>", "<|stop|>")
    tokenizer = Tokenizer.from_json(renamed, end_of_text="<|stop|>")
    ((_, ids),) = encode_documents([Document("a", "<|stop|>\ud83d")], tokenizer, 2)
    assert tokenizer.decode(ids) == "<|stop|>\ufffd"
    assert tokenizer.eot_id not in ids


def broken(documents):
    yield from documents
    raise UserError("the network is gone")


@pytest.mark.parametrize("processes", [0, 2])
def test_what_came_before_a_source_broke_is_not_lost(real_text, tokenizer, monkeypatch, processes):
    make_small(monkeypatch, 5000, 20_000)
    documents = documents_of_all_lengths(real_text)
    encoded = []
    with pytest.raises(UserError, match="the network is gone"):
        for document, _ in encode_documents(broken(documents), tokenizer, processes):
            encoded.append(document)
    assert encoded == documents


def test_processes_end_when_the_caller_does(corpus, tokenizer, monkeypatch):
    make_small(monkeypatch, 100, 400)
    others = set(multiprocessing.active_children())
    encoded = encode_documents(corpus, tokenizer, 2)
    next(encoded)
    children = set(multiprocessing.active_children()) - others
    assert len(children) == 2
    encoded.close()
    deadline = time.monotonic() + 60
    while any(is_alive(child.pid) for child in children):  # the pool's own thread joins them, and only one can
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_does_not_read_far_ahead():
    """Of tokenized documents, too, whose text is empty."""
    read = []

    def documents(text, n_tokens):
        for number in range(1000):
            read.append(number)
            yield Document("a", text, ids=np.zeros(n_tokens, np.uint16) if n_tokens else None)

    next(encode_documents(documents("a few words " * 2000, 0), Letters()))
    assert len(read) <= 1 + encode.BATCH // 24_000
    read.clear()
    next(encode_documents(documents("", 100_000), Letters()))
    assert len(read) <= 1 + encode.BATCH // 100_000
