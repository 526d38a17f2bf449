"""The chunked cross-entropy against the plain one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from topklm.model import loss as loss_module
from topklm.model.loss import linear_cross_entropy


@pytest.mark.parametrize("chunk_bytes", [1, 64 << 10, 8 << 20])
def test_equals_the_plain_cross_entropy(monkeypatch, chunk_bytes):
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", chunk_bytes)
    torch.manual_seed(0)
    hidden = torch.randn(300, 24, requires_grad=True)
    weight = torch.randn(111, 24, requires_grad=True)
    targets = torch.randint(0, 111, (300,))
    targets[5:50] = -1
    plain = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1)
    chunked = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(chunked, plain)
    for ours, theirs in zip(
        torch.autograd.grad(3 * chunked, (hidden, weight)),
        torch.autograd.grad(3 * plain, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_under_autocast_it_is_close_and_without_gradients_it_needs_none():
    torch.manual_seed(0)
    hidden, weight = torch.randn(100, 24, requires_grad=True), torch.randn(111, 24, requires_grad=True)
    targets = torch.randint(0, 111, (100,))
    exact = linear_cross_entropy(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(hidden, weight, targets)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0.01)
    for a, b in zip(
        torch.autograd.grad(rough, (hidden, weight)), torch.autograd.grad(exact, (hidden, weight)), strict=True
    ):
        assert F.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets), exact)
