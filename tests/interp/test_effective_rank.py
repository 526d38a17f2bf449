"""Effective rank, beside the definition on singular values."""

import math

import pytest
import torch

from topklm.interp import SecondMoments, effective_rank


def moments(*batches):
    found = SecondMoments()
    for batch in batches:
        found.add(batch)
    return found.covariance()


def by_definition(x_nd):
    """exp of the entropy of the normalised singular values, written out."""
    values = torch.linalg.svdvals(x_nd.double() - x_nd.double().mean(0))
    shares = [value / values.sum() for value in values if value > 1e-12 * values[0]]
    return math.exp(-sum(p * math.log(p) for p in shares))


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_beside_the_definition(rank):
    torch.manual_seed(0)
    x = torch.randn(200, rank, dtype=torch.float64) @ torch.randn(rank, 12, dtype=torch.float64) + 5
    assert effective_rank(moments(x)) == pytest.approx(by_definition(x), rel=1e-6)
    if rank == 1:
        assert effective_rank(moments(x)) == pytest.approx(1)


def test_by_hand():
    assert effective_rank(torch.eye(9)) == pytest.approx(9)
    assert effective_rank(torch.diag(torch.tensor([9.0, 1.0, 0.0]))) == pytest.approx(  # singular values 3 and 1
        math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    )
    assert effective_rank(torch.zeros(4, 4)) == 0


def test_batches_add_up_and_a_large_mean_does_no_harm():
    torch.manual_seed(0)
    x = 1e4 + torch.randn(300, 8)
    expected = torch.cov(x.double().T, correction=0)
    torch.testing.assert_close(moments(*x.split([7, 200, 93])), expected, rtol=1e-9, atol=1e-9)


def test_activations_that_are_not_finite_have_none():
    assert math.isnan(effective_rank(torch.full((3, 3), math.nan)))
