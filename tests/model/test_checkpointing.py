"""Activation checkpointing: the same losses, gradients and counts, to the bit, and less kept."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from topklm.model import document_numbers
from topklm.training.compiling import compile_blocks

SITES = ("resid_post_attn", "mlp_neurons", "resid_post_mlp")
MODES = ("selective", "block", "block_sparse")
COUNTERS = ("fired_d", "tokens_since_fired_d", "sums", "tokens")


def steps(model, ids, ks=(5, 7), autocast=False, documents=None):
    """Losses of a forward and backward pass for each k; gradients add up."""
    losses = []
    for k in ks:
        model.set_k([k] * len(model.sites))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.loss(ids, ids.roll(-1, 1), documents)
        loss.backward()
        losses.append(loss.item())
    return losses


def assert_same(model, other):
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for ours, theirs in zip(model.sites, other.sites, strict=True):
        for name in COUNTERS:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (ours.label, name)


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize(
    "topk", [{}, {"relu": True, "select": "magnitude"}, {"impl": "statistical", "grad": "ste"}, {"biased": True}]
)
@pytest.mark.parametrize("autocast", [False, True])
def test_equals_no_checkpointing(build, ids, how, topk, autocast):
    biased = topk.get("biased", False)
    plain = build({"sites": SITES, **{name: value for name, value in topk.items() if name != "biased"}})
    for site in plain.sites if biased else ():
        site.biased = True
        site.bias_d.normal_()
    model = copy.deepcopy(plain)
    model.set_checkpointing(how)
    documents = document_numbers(ids, 3)
    assert steps(model, ids, (5, 32), autocast, documents) == steps(plain, ids, (5, 32), autocast, documents)
    assert_same(model, plain)
    assert all(site.record for site in model.sites)


@pytest.mark.parametrize("how", ["block", "block_sparse"])
def test_a_graph_that_is_kept_serves_twice(build, ids, how):
    model = build({"sites": SITES})
    model.set_checkpointing(how)
    loss = model.loss(ids, ids.roll(-1, 1))
    first, second = (torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(site.record for site in model.sites)
    assert [int(site.tokens) for site in model.sites] == [ids.numel()] * len(model.sites)


@pytest.mark.parametrize("how", ["selective", "block_sparse"])
def test_compiled_it_is_the_same(build, ids, how):
    """Telemetry, documents and all sites included; k moves and nothing is compiled anew."""
    plain = build({"sites": SITES}, n_layers=2)
    model = copy.deepcopy(plain)
    model.set_checkpointing(how)
    torch.compiler.reset()
    counters.clear()
    compile_blocks(model, backend="aot_eager")
    documents = document_numbers(ids, 3)
    assert steps(model, ids, (5, 7, 31), documents=documents) == steps(plain, ids, (5, 7, 31), documents=documents)
    assert_same(model, plain)
    assert counters["stats"]["unique_graphs"] == 2  # TopK blocks, and the dense one


def held_after_forward(model, ids):
    """Bytes that autograd holds for the backward pass, parameters and what is computed from ids alone left out."""
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(ids, ids.roll(-1, 1))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for address, size in held.items() if address not in own)


def test_less_is_kept(build, ids):
    model = build({"sites": SITES})
    held = {}
    for how in ("none", "block"):
        model.set_checkpointing(how)
        held[how] = held_after_forward(model, ids)
    assert held["block"] < 0.3 * held["none"]


def test_evaluation_knows_nothing_of_it_and_another_name_is_refused(build, ids, monkeypatch):
    model = build().eval()
    expected = model(ids)
    model.set_checkpointing("block")
    monkeypatch.setattr("topklm.model.block.checkpointed", None)
    assert torch.equal(model(ids), expected)
    with torch.no_grad():
        model.train()(ids)
    with pytest.raises(ValueError, match="'all': choose from none, selective, block, block_sparse"):
        model.set_checkpointing("all")
