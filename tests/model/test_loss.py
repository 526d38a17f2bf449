"""The chunked cross-entropy against the plain one, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from topklm.model import loss as loss_module
from topklm.model.loss import linear_cross_entropy, linear_losses, token_cross_entropy


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


@pytest.mark.parametrize("chunk_bytes", [1, 64 << 10, 8 << 20])
def test_every_token_by_itself(monkeypatch, chunk_bytes):
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", chunk_bytes)
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 24, requires_grad=True), torch.randn(111, 24, requires_grad=True)
    targets = torch.randint(0, 111, (300,))
    targets[5:50] = -1
    nats = token_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(nats, F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="none"))
    assert not nats[5:50].any()
    assert not nats.requires_grad
    torch.testing.assert_close(nats.sum() / 255, linear_cross_entropy(hidden, weight, targets))


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator gives."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_logits_live_chunk_by_chunk_and_gradients_cost_nothing_where_none_are_wanted(monkeypatch):
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", 30 * 4 * 111)
    hidden, weight = torch.randn(300, 24, requires_grad=True), torch.randn(111, 24, requires_grad=True)
    targets = torch.randint(0, 111, (300,))
    with _Largest() as largest:
        token_cross_entropy(hidden, weight, targets)
        linear_cross_entropy(hidden, weight, targets)
    assert largest.elements == 300 * 24
    flops = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
            linear_cross_entropy(hidden, weight, targets)
        flops.append(counter.get_total_flops())
    assert flops == [3 * 2 * 300 * 24 * 111, 2 * 300 * 24 * 111]


@pytest.mark.parametrize("chunk_bytes", [64 << 10, 8 << 20])
def test_the_z_loss_equals_plain_autograd(monkeypatch, chunk_bytes):
    monkeypatch.setitem(loss_module.CHUNK_BYTES, "cpu", chunk_bytes)
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 24, requires_grad=True), torch.randn(111, 24, requires_grad=True)
    targets = torch.randint(0, 111, (300,))
    targets[5:50] = -1
    logits = hidden @ weight.T
    cross_entropy = F.cross_entropy(logits, targets, ignore_index=-1)
    squared_log_z = logits.logsumexp(-1).square()[targets >= 0].mean()
    plain = cross_entropy + 0.3 * squared_log_z
    ours = linear_losses(hidden, weight, targets, z_loss=0.3)
    for mine, theirs in zip(ours, (plain, cross_entropy, squared_log_z), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert [one.requires_grad for one in ours] == [True, False, False]
    for mine, theirs in zip(
        torch.autograd.grad(3 * ours.objective, (hidden, weight)),
        torch.autograd.grad(3 * plain, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)
    off = linear_losses(hidden, weight, targets)
    assert torch.equal(off.objective, linear_cross_entropy(hidden, weight, targets))
    assert torch.equal(off.objective, off.cross_entropy)
    assert off.squared_log_z == 0
