"""Overlap of active sets, beside Python's sets and beside random ones."""

import math

import pytest
import torch

from topklm.interp import chance_overlap, jaccard


def test_beside_sets():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 7, 12, generator=generator) < 0.3 for _ in range(2))
    a[0, 0] = b[0, 0] = False  # left out
    found = []
    for one, other in zip(a.flatten(0, 1).tolist(), b.flatten(0, 1).tolist(), strict=True):
        one, other = ({i for i, fires in enumerate(row) if fires} for row in (one, other))
        if one | other:
            found.append(len(one & other) / len(one | other))
    assert len(found) < 21
    assert jaccard(a, b) == pytest.approx(sum(found) / len(found))


def test_by_hand():
    a = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    b = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert jaccard(a, b) == pytest.approx((1 / 3 + 1) / 2)
    assert jaccard(a, a) == 1
    assert jaccard(a[:1], ~a[:1]) == 0
    assert math.isnan(jaccard(a & ~a, b & ~b))
    assert math.isnan(jaccard(a[:0], b[:0]))


@pytest.mark.parametrize(("a", "b", "d"), [(16, 16, 128), (8, 40, 64), (64, 64, 64)])
def test_chance_is_what_random_sets_give(a, b, d):
    generator = torch.Generator().manual_seed(0)

    def sets(k):
        chosen = torch.rand(4000, d, generator=generator).topk(k).indices
        return torch.zeros(4000, d, dtype=torch.bool).scatter_(1, chosen, True)

    assert chance_overlap(a, b, d) == pytest.approx(jaccard(sets(a), sets(b)), rel=0.03)
    assert chance_overlap(a, a, d) == pytest.approx(a / (2 * d - a))
    assert math.isnan(chance_overlap(0, 0, d))
