"""Which window is trained on when: every one once an epoch, whatever the workers and ranks, the same on every
machine."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from topklm.data.windows import StepSampler, TrainWindows, ValidationWindows, WindowOrder, block_permutation
from topklm.errors import UserError


@given(n=st.integers(1, 200), seed=st.integers(0, 2**32), block=st.integers(1, 250), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_window_once_block_by_block(n, seed, block, epoch):
    order = WindowOrder(n, seed, block)
    visited = [order[epoch * n + i] for i in range(n)]
    assert sorted(visited) == list(range(n))
    assert [w // block for w in visited] == [i // block for i in range(n)]


def test_seeds_and_epochs_differ():
    orders = [
        tuple(WindowOrder(100, seed, 1000)[epoch * 100 + i] for i in range(100)) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_the_order_is_the_same_on_every_machine():
    assert block_permutation(1, 0, 0, 10).tolist() == [8, 5, 7, 6, 3, 4, 9, 1, 0, 2]


def test_it_looks_random():
    order = block_permutation(7, 0, 0, 10000)
    assert abs(np.corrcoef(order, np.arange(10000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_and_workers_share_the_same_steps(prepared, workers, world):
    data = TrainWindows(prepared.train, seq_len=64, seed=3, block_windows=50)
    assert data.n_windows < 8 * 60  # so that the run goes through several epochs
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
    data = TrainWindows(prepared.train, seq_len=16, seed=3, block_windows=50)
    window = data.order[5]
    assert data[5].tolist() == prepared.train.read(window * 16, 17).tolist()


def test_validation_predicts_every_token_once(prepared):
    store = prepared.validation
    for seq_len in (16, store.tokens - 1, store.tokens + 5):
        windows = ValidationWindows(store, seq_len)
        targets = torch.cat([windows[i][1:] for i in range(len(windows))])
        assert targets[targets >= 0].tolist() == store.read(1, store.tokens - 1).tolist()
        assert windows[0].shape == (seq_len + 1,)
    assert len(ValidationWindows(store, 16, max_tokens=33)) == 3


def test_too_little_text(prepared):
    with pytest.raises(UserError, match="model.seq_len=1000000 is longer than the training data"):
        TrainWindows(prepared.train, 1_000_000, 0, 10)
    with pytest.raises(UserError, match="The validation split is empty"):
        ValidationWindows(prepared.validation, 16, max_tokens=0)
