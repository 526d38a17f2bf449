"""The sample of validation text, beside the documents it was made from."""

import numpy as np
import pytest
import torch

from topklm.data.windows import ValidationWindows
from topklm.interp import validation_sample


@pytest.fixture
def windows(prepared):
    return ValidationWindows(prepared.validation, 16, max_tokens=50)  # which makes no difference


def test_windows_are_spread_evenly(windows):
    sample = validation_sample(windows, 100)
    stream = windows.store.read(0, windows.store.tokens)
    there = (windows.store.tokens - 1) // 16
    firsts = [there * i // 6 * 16 for i in range(6)]
    assert there > 12
    assert sample.ids_wt.tolist() == [stream[first : first + 16].tolist() for first in firsts]


def test_every_token_knows_its_document_and_topic(windows):
    sample = validation_sample(windows, 10**9)
    assert sample.ids_wt.numel() == (windows.store.tokens - 1) // 16 * 16
    documents = list(windows.store.documents())
    assert sample.topics == ("A", "B", "C")
    for position, number in enumerate(sample.document_wt.flatten().tolist()):
        document = documents[number]
        assert document["first"] <= position <= document["first"] + document["tokens"]
        assert sample.topics[sample.topic_g[number]] == document["topic"]


def test_documents_between_the_windows_are_not_counted(windows):
    sample = validation_sample(windows, 32)
    assert sample.ids_wt.shape == (2, 16)
    assert sorted(set(sample.document_wt.flatten().tolist())) == list(range(len(sample.topic_g)))
    assert len(sample.topic_g) < len(list(windows.store.documents()))


@pytest.mark.parametrize("topic", [None, "colour"])
def test_without_topics(windows, topic):
    sample = validation_sample(windows, 100, topic)
    assert sample.topics == ()
    assert torch.equal(sample.topic_g, torch.full_like(sample.topic_g, -1))


def test_less_text_than_a_window(prepared):
    windows = ValidationWindows(prepared.validation, 10**6)
    tokens = windows.store.tokens - 1
    sample = validation_sample(windows, 100)
    assert np.array_equal(sample.ids_wt, windows.store.read(0, tokens)[None])
