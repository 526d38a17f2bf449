"""Which window is trained on when: every one once an epoch, whatever the workers and ranks, the same on every
machine."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from topklm.data import Mixture, Split, TokenizerConfig, prepare
from topklm.data.packing import BestFit, Concat
from topklm.data.sources.mixture import Part
from topklm.data.windows import StepSampler, TrainWindows, ValidationWindows, block_permutation
from topklm.errors import UserError


class FixedPacking:
    """So many windows of two tokens, [w, w + 1]."""

    length = 1

    def __init__(self, n):
        self.n = n

    def available(self, first, stop):
        return self.n, True

    def rows(self, first, count):
        return np.arange(first, first + count)[:, None] + np.arange(2)


def visited(n, seed, block, first, count, order="shuffled"):
    data = TrainWindows(FixedPacking(n), seed, block, order)
    found = data.__getitems__(range(first, first + count))[:, 0].tolist()
    assert found == [data.window(position) for position in range(first, first + count)]
    return found


@given(n=st.integers(1, 200), seed=st.integers(0, 2**32), block=st.integers(1, 250), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_window_once_block_by_block(n, seed, block, epoch):
    windows = visited(n, seed, block, epoch * n, n)
    assert sorted(windows) == list(range(n))
    assert [w // block for w in windows] == [i // block for i in range(n)]


def test_seeds_and_epochs_differ():
    orders = [tuple(visited(100, seed, 1000, epoch * 100, 100)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_sequential():
    assert visited(7, 0, 3, 0, 16, "sequential") == [i % 7 for i in range(16)]


def test_the_order_is_the_same_on_every_machine():
    assert block_permutation(1, 0, 0, 10).tolist() == [8, 5, 7, 6, 3, 4, 9, 1, 0, 2]


def test_it_looks_random():
    order = block_permutation(7, 0, 0, 10000)
    assert abs(np.corrcoef(order, np.arange(10000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("packing", [Concat, BestFit])
def test_ranks_and_workers_share_the_same_steps(prepared, workers, world, packing):
    data = TrainWindows(packing(prepared.train, 64), seed=3, block_windows=50)
    assert data.packing.available(0, 1)[0] < 8 * 60  # so that the run goes through several epochs
    expected = [torch.stack([data[step * 8 + i] for i in range(8)]) for step in range(60)]
    for first in (0, 17):
        loaders = []
        for rank in range(world):
            sampler = StepSampler(60, 8, rank, world, first)
            assert len(sampler) == 60
            loaders.append(
                DataLoader(
                    data, batch_sampler=sampler, collate_fn=lambda batch: batch, num_workers=workers if rank == 0 else 0
                )
            )
        steps = [torch.cat(shares) for shares in zip(*loaders, strict=True)]
        assert len(steps) == 60 - first
        assert all(torch.equal(a, b) for a, b in zip(steps, expected[first:], strict=True))


def test_windows_are_the_stream(prepared):
    data = TrainWindows(Concat(prepared.train, 16), seed=3, block_windows=50)
    window = data.window(5)
    assert data[5].tolist() == prepared.train.store.read(window * 16, 17).tolist()


def test_validation_predicts_every_token_once(prepared):
    store = prepared.validation.store
    for seq_len in (16, store.tokens - 1, store.tokens + 5):
        windows = ValidationWindows(prepared.validation, seq_len)
        targets = torch.cat([windows[i][0][1:] for i in range(len(windows))])
        assert targets[targets >= 0].tolist() == store.read(1, store.tokens - 1).tolist()
        assert windows[0][0].shape == (seq_len + 1,)
    assert len(ValidationWindows(prepared.validation, 16, max_tokens=33)) == 3


def test_validation_tells_sources_apart(corpus, list_source, tmp_path):
    mixture = Mixture({"a": Part(list_source(corpus[:90], "a")), "b": Part(list_source(corpus[90:], "b"), 2.0)})
    prepared = prepare(mixture, TokenizerConfig(name="bytes"), Split(0.3), tmp_path)
    assert prepared.sources == ["a", "b"]
    windows = ValidationWindows(prepared.validation, 16, sources=prepared.sources)
    found = torch.cat([windows[i][1] for i in range(len(windows))])[: windows.targets]
    expected = [
        ["a", "b"].index(entry["source"])
        for entry in prepared.validation.store.documents()
        for _ in range(entry["tokens"] + 1)
    ]
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_too_little_text(prepared):
    with pytest.raises(
        UserError, match=r"model.seq_len=1000000 is longer than the training data, which has [\d,]+ tokens"
    ):
        TrainWindows(Concat(prepared.train, 1_000_000), 0, 10)[0]
    with pytest.raises(UserError, match="The validation split is empty"):
        ValidationWindows(prepared.validation, 16, max_tokens=0)
