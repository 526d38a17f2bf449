"""Whole-document packing: every prediction once, documents whole where they fit, little padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from topklm.data import Split, TokenizerConfig, prepare
from topklm.data.packing import BestFit, best_fit


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 25))
def test_every_prediction_of_every_document_is_in_one_window(lengths, length):
    firsts = np.cumsum([0, *lengths])
    documents = [(int(first), count) for first, count in zip(firsts, lengths, strict=False)]
    plan = best_fit(documents, length)
    predicted = [t for first, count in zip(plan.firsts, plan.counts, strict=True) for t in range(first, first + count)]
    assert sorted(predicted) == list(range(firsts[-1]))
    for window in range(len(plan)):
        pieces = range(plan.bounds[window], plan.bounds[window + 1])
        assert 0 < sum(plan.counts[p] for p in pieces) <= length
        # Only the first piece may begin inside a document: nothing stands before it that it could be taken to follow.
        assert all(plan.firsts[p] in firsts for p in list(pieces)[1:])
    for first, count in documents:
        if count <= length:
            assert any(f == first and c == count for f, c in zip(plan.firsts, plan.counts, strict=True))


def test_it_packs_as_best_fit_decreasing_does():
    plan = best_fit([(0, 6), (10, 5), (20, 4), (30, 3), (40, 2)], 10)
    windows = [plan.counts[a:b].tolist() for a, b in zip(plan.bounds, plan.bounds[1:], strict=False)]
    assert windows == [[6, 4], [5, 3, 2]]


@pytest.mark.parametrize("length", [8, 33, 200])
def test_windows_hold_whole_documents_between_end_of_text(corpus, list_source, tmp_path, length):
    prepared = prepare(list_source(corpus), TokenizerConfig(vocab_size=300), Split(0.1, shard_tokens=900), tmp_path)
    store, packing = prepared.train.store, BestFit(prepared.train, length)
    assert len(store.shards) > 3
    n, complete = packing.available(0, 1 << 40)
    assert complete
    rows = packing.rows(0, n)
    assert rows.shape == (n, length + 1)
    predictions = int((rows[:, 1:] >= 0).sum())
    assert predictions == store.tokens - 1
    whole = [store.read(e["first"], e["tokens"] + 2).tolist() for e in store.documents() if e["tokens"] + 1 <= length]
    text = [[int(token) for token in row if token >= 0] for row in rows]
    joined = "|".join(" ".join(map(str, row)) for row in text)
    assert all(" ".join(map(str, document)) in joined for document in whole)
    if length == 200:
        assert predictions / (n * length) > 0.8  # a shard of 900 tokens leaves much of its last window empty
    parts = [packing.rows(first, min(7, n - first)) for first in range(0, n, 7)]
    assert (np.concatenate(parts) == rows).all()


def test_windows_are_counted_once_for_all_processes_and_no_further_than_asked(
    corpus, list_source, tmp_path, monkeypatch
):
    prepared = prepare(list_source(corpus), TokenizerConfig(vocab_size=300), Split(0.1, shard_tokens=900), tmp_path)
    planned = []
    monkeypatch.setattr(
        BestFit, "_make_plan", lambda self, n, make=BestFit._make_plan: planned.append(n) or make(self, n)
    )
    first = BestFit(prepared.train, 33)
    assert first.available(0, 1)[1] is False
    assert planned == [0]
    n = first.available(0, 1 << 40)[0]
    assert planned == list(range(len(prepared.train.store.shards)))
    planned.clear()
    second = BestFit(prepared.train, 33)
    assert second.available(0, 1 << 40) == (n, True)
    assert planned == []
    assert (second.rows(n - 5, 5) == first.rows(n - 5, 5)).all()
    assert BestFit(prepared.train, 34).available(0, 1 << 40)[0] != n
    (prepared.train.store.path / "best_fit_33.json").write_text('{"first_shard": "0", "windows": [1, 1]}')
    assert BestFit(prepared.train, 33).available(0, 1 << 40) == (n, True)
