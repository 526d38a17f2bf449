"""Token entropy at an equal number of firings, beside counting one firing after another."""

import importlib
import math
from collections import Counter

import pytest
import torch

from topklm.interp import draw_order, token_entropy


def counted(fired, ids, firings, order):
    """The same by hand: walk through the order, keep the first firings, count."""
    found = []
    for neuron in range(fired.shape[1]):
        kept = [ids[p].item() for p in order.tolist() if fired[p, neuron]][:firings]
        shares = [n / firings for n in Counter(kept).values()]
        found.append(-sum(p * math.log2(p) for p in shares) if len(kept) == firings else math.nan)
    return found


@pytest.mark.parametrize("firings", [2, 10, 40])
def test_beside_counting(firings, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 9, (150,), generator=generator) * 1000
    fired = torch.rand(150, 20, generator=generator) < torch.linspace(0, 1, 20)
    order = draw_order(150, seed=3)
    expected = counted(fired, ids, firings, order)
    assert 0 < sum(map(math.isnan, expected)) < 20
    assert token_entropy(fired, ids, firings, order).tolist() == pytest.approx(expected, nan_ok=True)
    module = importlib.import_module("topklm.interp.token_entropy")
    monkeypatch.setattr(module, "MAX_CELLS", 30)  # three neurons at a time
    assert token_entropy(fired, ids, firings, order).tolist() == pytest.approx(expected, nan_ok=True)


def test_by_hand():
    ids = torch.tensor([5, 5, 6, 7, 5, 6, 7, 8])
    fired = torch.tensor(
        [[1, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    )
    bits = token_entropy(fired.bool(), ids, 2, torch.arange(8))
    assert bits.tolist() == [0, 1, 0, 1]  # one word; 5 and 6; one word; 5 and 6
    assert token_entropy(fired.bool(), ids, 4, torch.arange(8)).isnan().tolist() == [True, False, True, True]


def test_an_equal_number_of_firings_makes_neurons_comparable():
    """A neuron that fires everywhere and one that fires on few tokens at random have nearly the same entropy."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 500, (20_000,), generator=generator)
    fired = torch.rand(20_000, 2, generator=generator) < torch.tensor([1.0, 0.02])
    often, seldom = token_entropy(fired, ids, 200, draw_order(20_000, 0)).tolist()
    assert often == pytest.approx(seldom, abs=0.2)
    everything = token_entropy(fired[:, :1], ids, 20_000, draw_order(20_000, 0)).item()
    assert everything > often + 1


def test_the_order_is_fixed_and_costs_no_random_state():
    before = torch.get_rng_state()
    assert torch.equal(draw_order(50, 1), draw_order(50, 1))
    assert not torch.equal(draw_order(50, 1), draw_order(50, 2))
    assert torch.equal(draw_order(50, 1).sort().values, torch.arange(50))
    assert torch.equal(torch.get_rng_state(), before)
