"""Mixtures: shares of text follow the weights all along, and the order is a function of the documents alone."""

import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topklm.data import Document, Files, Mixture
from topklm.data.sources.mixture import Part
from topklm.errors import UserError


class Texts:
    """A source over a list of documents; a None among them is passed over and counted."""

    def __init__(self, documents, name="texts"):
        self._documents, self.name, self.fingerprint, self.skipped = documents, name, f"{name}-1", {}

    def documents(self, after=None):
        self.skipped = {}
        for number, document in enumerate(self._documents, start=1):
            if number <= (after or 0):
                continue
            if document is None:
                self.skipped["row"] = self.skipped.get("row", 0) + 1
            else:
                yield Document(f"{self.name}:{number}", document.text, document.meta, number, document.ids)


def texts(*sizes, letter="a"):
    return Texts([Document("", letter * size, {"size": str(size)}) for size in sizes])


def random_texts(seed, n, largest, alphabet):
    rng = random.Random(seed)
    return Texts([Document("", "".join(rng.choices(alphabet, k=rng.randint(0, largest)))) for _ in range(n)])


def read(mixture, after=None):
    return [(d.meta["source"], d.text) for d in mixture.documents(after)]


def check_shares(documents, weights):
    """At every prefix no part is ahead of another by more than its own last document: its bytes before that document,
    over its weight, were the smallest of all."""
    drawn = dict.fromkeys(weights, 0)
    for document in documents:
        name = document.meta["source"]
        behind = {other: Fraction(drawn[other]) / Fraction(weights[other]) for other in weights}
        assert behind[name] == min(behind.values())
        drawn[name] += len(document.text.encode())
    return drawn


@pytest.mark.parametrize("weights", [{"a": 1, "b": 1, "c": 1}, {"a": 3, "b": 1, "c": 8}, {"a": 0.5, "b": 2, "c": 0.25}])
def test_shares_follow_the_weights(resumes, weights):
    parts = {
        "a": Part(random_texts(0, 60, 40, "xyz"), weights["a"]),
        "b": {"source": random_texts(1, 60, 90, "éж漢🦊"), "weight": weights["b"]},  # bytes count, not characters
        "c": {"source": random_texts(2, 60, 200, "x "), "weight": weights["c"]},
    }
    documents = resumes(Mixture(parts, stop="first"))
    drawn = check_shares(documents, weights)
    shares = {name: drawn[name] / sum(drawn.values()) for name in weights}
    wanted = {name: weights[name] / sum(weights.values()) for name in weights}
    assert shares == pytest.approx(wanted, abs=0.1)
    for name, part in parts.items():  # each in its own order, from its beginning
        source = part.source if isinstance(part, Part) else part["source"]
        own = [d.text for d in documents if d.meta["source"] == name]
        assert own == [d.text for d in source.documents()][: len(own)]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 20), max_size=8), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    stop=st.sampled_from(["all", "first"]),
)
def test_any_parts(resumes, sizes, weights, stop):
    def mixture():
        return Mixture({f"p{i}": Part(texts(*own), weights[i]) for i, own in enumerate(sizes)}, stop)

    documents = resumes(mixture())
    assert [(d.id, d.cursor) for d in mixture().documents()] == [(d.id, d.cursor) for d in documents]
    # The same by hand: whoever is furthest behind gives its next document, the first named where several are.
    queues, drawn, expected = [list(own) for own in sizes], [0] * len(sizes), []
    open_parts = list(range(len(sizes)))
    while open_parts:
        chosen = min(open_parts, key=lambda i: (Fraction(drawn[i], weights[i]), i))
        if not queues[chosen]:
            open_parts.remove(chosen)
            if stop == "first":
                break
            continue
        size = queues[chosen].pop(0)
        drawn[chosen] += size
        expected.append((f"p{chosen}", size))
    assert [(d.meta["source"], int(d.meta["size"])) for d in documents] == expected


def test_a_part_that_ends_early(resumes):
    parts = {"short": Part(texts(10, 10), 1), "long": Part(texts(*[10] * 6, letter="b"), 1)}
    everything = [d.meta["source"] for d in resumes(Mixture(parts, "all"))]
    assert everything == ["short", "long"] * 2 + ["long"] * 4
    assert [d.meta["source"] for d in resumes(Mixture(parts, "first"))] == ["short", "long"] * 2


def test_the_rest_keep_their_shares_once_a_part_has_ended(resumes):
    weights = {"a": 1, "b": 2, "c": 1}
    parts = {
        "a": Part(random_texts(0, 200, 20, "x"), 1),
        "b": Part(random_texts(1, 200, 20, "y"), 2),
        "c": Part(texts(5, 5), 1),
    }
    documents = resumes(Mixture(parts))
    last = max(number for number, d in enumerate(documents) if d.meta["source"] == "c")
    later = documents[last + 1 :]
    b_ends = max(number for number, d in enumerate(later) if d.meta["source"] == "b")
    drawn = {name: sum(d.size for d in later[:b_ends] if d.meta["source"] == name) for name in weights}
    assert drawn["b"] / drawn["a"] == pytest.approx(2, rel=0.1)
    assert len(documents) == 402


def test_ids_meta_and_tokens(resumes):
    tokens = Texts([Document("", "", {}, ids=np.arange(n, dtype=np.uint16)) for n in (10, 10)])
    source = Texts([Document("", "x" * 40, {"title": "T", "source": "overwritten"}) for _ in range(3)])
    documents = resumes(Mixture({"t": Part(tokens, 1), "x": Part(source, 1)}))
    assert [d.id for d in documents] == ["t:texts:1", "x:texts:1", "t:texts:2", "x:texts:2", "x:texts:3"]
    assert documents[0].ids.tolist() == list(range(10))
    assert documents[0].meta == {"source": "t"}
    assert documents[1].meta == {"title": "T", "source": "x"}


def test_the_same_source_twice(resumes):
    source = texts(1, 2, 3)
    documents = resumes(Mixture({"a": Part(source), "b": Part(source)}))
    assert [d.id for d in documents] == [f"{name}:texts:{n}" for n in (1, 2, 3) for name in "ab"]


def test_nested(resumes):
    inner = Mixture({"a": Part(texts(4, 4, 4, 4), 1), "b": Part(texts(4, 4, 4, 4), 3)})
    outer = Mixture({"in": Part(inner, 1), "out": Part(texts(*[4] * 8), 1)})
    documents = resumes(outer)
    assert len(documents) == 16
    assert [d.meta["source"] for d in documents] == ["in", "out"] * 8
    assert [d.id.split(":")[1] for d in documents[::2]] == list("abbbabaa")


def test_what_is_passed_over_is_told_by_part():
    good = Document("", "x")
    first, second = Texts([None, good, None]), Texts([good, None, good])
    mixture = Mixture({"in": Part(Mixture({"a": Part(first), "b": Part(second)})), "c": Part(Texts([good, good]))})
    for _ in range(2):
        assert len(list(mixture.documents())) == 5
        assert mixture.skipped == {"row of a of in": 2, "row of b of in": 1}


def test_files_in_a_mixture(tmp_path, resumes):
    (tmp_path / "a.jsonl").write_text('{"text": "aa"}\n{\n{"text": "aaaa"}\n')
    (tmp_path / "b.txt").write_text("bbb")
    mixture = Mixture(
        {
            "lines": Part(Files(str(tmp_path / "a.jsonl"), on_error="skip")),
            "whole": Part(Files(str(tmp_path / "b.txt"))),
        }
    )
    assert [d.text for d in resumes(mixture)] == ["aa", "bbb", "aaaa"]
    assert [d.id for d in mixture.documents()] == ["lines:a.jsonl:1", "whole:b.txt:1", "lines:a.jsonl:3"]
    assert mixture.skipped == {"line of lines": 1}


def test_an_error_of_a_part_goes_through(tmp_path):
    (tmp_path / "a.jsonl").write_text("{\n")
    mixture = Mixture({"a": Part(Files(str(tmp_path / "a.jsonl"))), "b": Part(texts(1))})
    with pytest.raises(UserError, match=r"a\.jsonl, line 1"):
        read(mixture)


def test_fingerprint_and_name():
    other = texts(1)
    other.fingerprint = "texts-2"
    mixtures = [
        Mixture({"a": Part(texts(1)), "b": Part(texts(1))}),
        Mixture({"a": Part(texts(1)), "b": Part(texts(1), 2)}),
        Mixture({"a": Part(texts(1)), "b": Part(other)}),
        Mixture({"a": Part(other), "b": Part(texts(1))}),
        Mixture({"b": Part(texts(1)), "a": Part(texts(1))}),  # ties are broken by order
        Mixture({"a": Part(texts(1)), "c": Part(texts(1))}),
        Mixture({"a": Part(texts(1)), "b": Part(texts(1))}, stop="first"),
        Mixture({"a": Part(texts(1))}),
    ]
    assert len({mixture.fingerprint for mixture in mixtures}) == len(mixtures)
    assert mixtures[0].fingerprint == Mixture({"a": Part(texts(1)), "b": {"source": texts(1)}}).fingerprint
    assert mixtures[0].name == "mixture-a-b"


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "3", None, True])
def test_bad_weights(weight):
    with pytest.raises(UserError, match=rf"^data\.parts\.en\.weight={weight}: give a number above 0\.$"):
        Mixture({"en": {"source": texts(1), "weight": weight}})


@pytest.mark.parametrize("part", [None, 3, {}, {"weight": 1}, {"source": texts(1), "share": 2}])
def test_bad_parts(part):
    with pytest.raises(UserError, match=r"^data\.parts\.en: give source and weight, and nothing else\.$"):
        Mixture({"en": part})


def test_bad_settings():
    with pytest.raises(UserError, match=r"^data\.parts is empty: name at least one source with its weight\.$"):
        Mixture({})
    with pytest.raises(UserError, match=r"^data\.stop=never: choose from all, first\.$"):
        Mixture({"a": Part(texts(1))}, stop="never")
