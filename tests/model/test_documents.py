"""Packed documents: a window gives what its documents give alone, whatever stands beside them."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from topklm.model import document_numbers
from topklm.model.attention import KVCache
from topklm.model.layers import Rotary

EOT = 0
ALL_SITES = {"sites": ("resid_post_attn", "mlp_neurons", "resid_post_mlp")}
# Where documents begin: at the window's begin and with one of a single token; within a window that begins in the middle
# of a document, and ends with the begin of one; nowhere.
BEGINS = [[0, 5, 6, 17], [9, 20, 23], []]


@pytest.fixture
def packed():
    """Ids and targets of three windows, (3, 24) each; one target in five is -1."""
    generator = torch.Generator().manual_seed(2)
    ids, targets = torch.randint(1, 97, (2, 3, 24), generator=generator)
    targets[torch.rand(3, 24, generator=generator) < 0.2] = -1
    for row, begins in enumerate(BEGINS):
        ids[row, begins] = EOT
    return ids, targets


def pieces():
    """Row, first position and end of every document."""
    for row, begins in enumerate(BEGINS):
        edges = sorted({0, *begins, 24})
        for first, stop in itertools.pairwise(edges):
            yield row, first, stop


def gradients(model, loss):
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def test_documents_are_numbered_from_their_end_of_text_tokens():
    ids = torch.tensor([[0, 4, 7, 0, 0, 9], [3, 3, 0, 5, 6, 0], [1, 2, 3, 4, 5, 6]])
    assert document_numbers(ids, EOT).tolist() == [[1, 1, 1, 2, 3, 3], [0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]]
    assert document_numbers(ids, 3).tolist() == [[0, 0, 0, 0, 0, 0], [1, 2, 2, 2, 2, 2], [0, 0, 1, 1, 1, 1]]


def test_positions_count_from_the_documents_first_token(packed):
    rotary = Rotary(8, 24, 100.0)
    positions = rotary.in_documents(document_numbers(packed[0], EOT))
    whole = rotary(0, 24)
    sees = torch.zeros(3, 1, 24, 24, dtype=torch.bool)
    for row, first, stop in pieces():
        assert torch.equal(positions.cos[row, 0, first:stop], whole.cos[: stop - first])
        assert torch.equal(positions.sin[row, 0, first:stop], whole.sin[: stop - first])
        for t in range(first, stop):
            sees[row, 0, t, first : t + 1] = True
    assert torch.equal(positions.sees_b1ts, sees)


@pytest.mark.parametrize("topk", [{}, {**ALL_SITES, "k": 5}, {"sites": ()}])
@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2, "qk_norm": False, "tied": True}])
def test_a_window_gives_what_its_documents_give_alone(build, packed, topk, changes):
    model = build(topk, **changes)
    ids, targets = packed
    documents = document_numbers(ids, EOT)
    logits = model(ids, documents_bt=documents)
    total = 0
    for row, first, stop in pieces():
        alone = model(ids[row : row + 1, first:stop])[0]
        torch.testing.assert_close(logits[row, first:stop], alone, rtol=1e-5, atol=1e-5)
        total += F.cross_entropy(alone, targets[row, first:stop], ignore_index=-1, reduction="sum")
    expected = total / (targets >= 0).sum()
    loss = model.loss(ids, targets, documents)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected), rtol=1e-5, atol=1e-5)
    nats = model.token_losses(ids, targets, documents)
    torch.testing.assert_close(nats.sum() / (targets >= 0).sum(), expected.detach())
    assert not torch.isclose(model.loss(ids, targets), loss, rtol=1e-4)


def test_a_document_does_not_reach_the_others(build, packed):
    model = build(ALL_SITES)
    ids, _ = packed
    before = model(ids, documents_bt=document_numbers(ids, EOT))
    for row, first, stop in pieces():
        other = ids.clone()
        other[row, first:stop] = torch.where(ids[row, first:stop] == EOT, EOT, ids[row, first:stop] % 96 + 1)
        after = model(other, documents_bt=document_numbers(other, EOT))
        outside = torch.ones(3, 24, dtype=torch.bool)
        outside[row, first:stop] = False
        torch.testing.assert_close(after[outside], before[outside], rtol=0, atol=1e-6)
        if stop - first > 1:  # the only token of the others begins its document, and stays
            assert not torch.allclose(after[row, first:stop], before[row, first:stop], atol=1e-3)


def test_one_document_is_what_no_documents_are(build, ids):
    model = build(ALL_SITES, n_kv_heads=2)
    for documents in (torch.zeros_like(ids), torch.full_like(ids, 7, dtype=torch.int32)):
        torch.testing.assert_close(model(ids, documents_bt=documents), model(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_blocks_give_the_same(build, packed, autocast):
    torch._dynamo.reset()  # what other tests compiled of the same code counts towards a limit
    model, compiled = build(ALL_SITES, n_kv_heads=2), build(ALL_SITES, n_kv_heads=2)
    for block in compiled.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    ids, targets = packed
    tolerance = 2e-2 if autocast else 1e-5
    for documents in (document_numbers(ids, EOT), None, document_numbers(ids, 5)):
        losses = []
        for m in (compiled, model):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                losses.append(m.loss(ids, targets, documents))
        torch.testing.assert_close(*losses, rtol=tolerance, atol=tolerance)
        ours, theirs = gradients(compiled, losses[0]), gradients(model, losses[1])
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_in_bfloat16_it_is_close(build, packed, n_kv_heads):
    model = build({"sites": ()}, n_kv_heads=n_kv_heads)  # rounding changes what TopK selects
    ids, targets = packed
    documents = document_numbers(ids, EOT)
    exact = model(ids, documents_bt=documents)
    with torch.autocast("cpu", torch.bfloat16):
        rough, loss = model(ids, documents_bt=documents).float(), model.loss(ids, targets, documents)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)
    assert (rough - exact).abs().max() < (model(ids) - exact).abs().max() / 5
    theirs = gradients(model, model.loss(ids, targets, documents))
    for name, ours in gradients(model, loss).items():
        assert F.cosine_similarity(ours.flatten(), theirs[name].flatten(), dim=0) > 0.99, name


def test_documents_that_do_not_fit_are_refused(build, packed):
    model = build()
    ids, _ = packed
    documents = document_numbers(ids, EOT)
    caches = [KVCache(model.config, 3, torch.device("cpu"), torch.float32) for _ in range(3)]
    with pytest.raises(ValueError, match="a cache continues one document"):
        model(ids, caches, documents)
    with pytest.raises(ValueError, match=r"documents_bt is \(3, 23\), but ids_bt is \(3, 24\)"):
        model(ids, documents_bt=documents[:, 1:])
