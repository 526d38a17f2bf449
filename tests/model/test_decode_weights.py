"""Weights for generation: which matrices take columns, that the result is the dense one, and that nothing stale or too
sparse is ever used."""

import pytest
import torch
from torch import nn

from topklm.model import DecodeWeights, column_product, decode_weights, generate
from topklm.model.attention import KVCache
from topklm.model.decode_weights import break_even, sparse_readers

ALL = ("resid_post_attn", "mlp_neurons", "resid_post_mlp")
CPU = torch.device("cpu")


@pytest.fixture
def every_matrix_pays(monkeypatch):
    """The rule without its smallest matrix, for models of a test's size."""
    monkeypatch.setattr(decode_weights, "SMALLEST_MATRIX", 1)


@torch.no_grad()
def last_logits(model, ids_bt, weights=None):
    """Of each position, decoded token by token after a prompt of 4."""
    caches = [KVCache(model.config, len(ids_bt), CPU, torch.float32) for _ in model.blocks]
    model.eval()
    with (weights or DecodeWeights(model, False)).in_use(len(ids_bt)):
        found = [model(ids_bt[:, :4], caches)[:, -1]]
        found += [model(ids_bt[:, t : t + 1], caches)[:, -1] for t in range(4, ids_bt.shape[1])]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize(
    ("sites", "n_nontopk", "readers"),
    [
        (("resid_post_mlp",), 1, ["blocks.1.attn.qkv", "blocks.2.attn.qkv"]),
        (("resid_post_mlp",), 0, ["blocks.1.attn.qkv", "blocks.2.attn.qkv", "head"]),
        (("resid_post_attn",), 1, ["blocks.0.mlp.gate_up", "blocks.1.mlp.gate_up"]),
        (("mlp_neurons",), 1, ["blocks.0.mlp.down", "blocks.1.mlp.down"]),
        ((), 1, []),
    ],
)
def test_a_reader_meets_zeros_and_no_other_matrix_does(build, ids, sites, n_nontopk, readers):
    """Seen by hooks: the share of zeros in what each matrix is given."""
    model = build({"sites": sites, "k": 5, "n_nontopk": n_nontopk}).eval()
    nonzeros = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: nonzeros.update({name: x[0].count_nonzero(-1)}))
    model(ids)
    assert list(sparse_readers(model)) == readers
    assert sorted(name for name, count in nonzeros.items() if count.max() <= 5) == sorted(readers)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "topk",
    [
        {"k": 4},
        {"k": 32},  # of 32: the identity, at resid_post_mlp
        {"k": 4, "select": "magnitude"},
        {"k": 9, "relu": True},
        {"k": 6, "impl": "statistical"},
        {"k": [3, 7, 5], "n_nontopk": 0},
    ],
    ids=str,
)
def test_logits_are_the_dense_ones(build, ids, topk, tied):
    model = build({"sites": ALL, "n_nontopk": 0, **topk}, tied=tied, mup_base_width=16)
    weights = DecodeWeights(model, True)
    torch.testing.assert_close(last_logits(model, ids, weights), last_logits(model, ids), rtol=1e-4, atol=1e-5)
    assert all(choice.by_columns for choice in weights.choices)
    assert len(weights.choices) == 9


def test_ties_are_multiplied_as_they_were_chosen(build, ids):
    model = build({"sites": ALL, "k": 4})
    with torch.no_grad():
        model.embed.weight.copy_(model.embed.weight.sign())
        model.blocks[0].attn.out.weight.zero_()  # what TopK sees after attention is all 1 and -1
    torch.testing.assert_close(last_logits(model, ids, DecodeWeights(model, True)), last_logits(model, ids))


@pytest.mark.parametrize("topk", [{"k": 4, "sites": ALL}, {"k": 4, "n_nontopk": 0}, {"sites": ()}], ids=str)
def test_greedy_continuations_are_equal(build, ids, topk):
    model = build(topk)
    dense = generate(model, ids[:, :5], 15, temperature=0, sparse=False)
    assert torch.equal(generate(model, ids[:, :5], 15, temperature=0, sparse=True), dense)


def test_a_seed_gives_the_same_text_dense_or_sparse(build, ids):
    model = build({"k": 4, "sites": ALL})
    dense, one, other = (
        generate(model, ids[:, :5], 15, seed=seed, sparse=s) for seed, s in ((3, False), (3, True), (4, True))
    )
    assert torch.equal(one, dense)
    assert not torch.equal(other, dense)


def test_under_autocast_products_are_those_of_autocast(build, ids):
    """In bfloat16: as close to float32 as autocast itself, and the weights are cast once."""
    model = build({"k": 4, "sites": ALL})
    exact = last_logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(ids)[:, 3:]
        weights = DecodeWeights(model, True)
        found = last_logits(model, ids, weights)
        assert {copy.tensor.dtype for copy in weights._copies.values()} == {torch.bfloat16}
        assert len(weights._copies) == sum(isinstance(module, nn.Linear) for module in model.modules())
    assert plain.dtype == found.dtype == torch.bfloat16
    assert (found - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


def test_k_that_changes_is_respected(build, ids, every_matrix_pays):
    """Between calls the choice is made anew; within one, columns are read as the state has them, whatever k was."""
    model = build({"k": 4})
    weights = DecodeWeights(model)
    generate(model, ids[:, :5], 3, sparse=weights)
    assert [(choice.k, choice.by_columns) for choice in weights.choices] == [(4, True), (4, True)]
    with model.using_k([32, 8]):
        dense = last_logits(model, ids)
        torch.testing.assert_close(last_logits(model, ids, weights), dense, rtol=1e-4, atol=1e-5)
        assert [(choice.k, choice.by_columns) for choice in weights.choices] == [(32, False), (8, True)]
    with weights.in_use(2), model.using_k([32, 8]), torch.no_grad():
        x_bti = model.sites[0](torch.randn(2, 1, 32))
        expected_bto = nn.functional.linear(x_bti, model.blocks[1].attn.qkv.weight)
        torch.testing.assert_close(model.blocks[1].attn.qkv(x_bti), expected_bto, rtol=1e-4, atol=1e-5)


def test_weights_that_changed_are_copied_anew(build, ids):
    model = build({"k": 4, "sites": ALL})
    weights = DecodeWeights(model, True)
    before = last_logits(model, ids, weights)
    copies = dict(weights._copies)
    last_logits(model, ids, weights)
    assert weights._copies == copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = last_logits(model, ids, weights)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, last_logits(model, ids), rtol=1e-4, atol=1e-5)


def test_afterwards_the_model_is_as_before(build, ids):
    model = build({"k": 4})
    names = list(model.state_dict())
    with pytest.raises(ZeroDivisionError), DecodeWeights(model, True).in_use(1):
        assert "forward" in vars(model.blocks[1].attn.qkv)
        assert list(model.state_dict()) == names
        1 / 0  # noqa: B018
    assert all("forward" not in vars(module) for module in model.modules())
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    assert model.blocks[1].attn.qkv.weight.grad is not None


def test_auto_takes_columns_where_they_pay(build, every_matrix_pays):
    def chosen(k, batch=1, tokens=None):
        weights = DecodeWeights(build({"k": k}), tokens=tokens)
        with weights.in_use(batch):
            return [choice.by_columns for choice in weights.choices], weights.bytes

    matrix = 32 * 96 * 4
    assert chosen(16) == ([True, True], 2 * matrix)
    assert chosen(17) == ([False, False], 0)
    assert chosen(16, batch=2) == ([False, False], 0)
    assert chosen(8, batch=2) == ([True, True], 2 * matrix)
    assert chosen(4, tokens=decode_weights.TOKENS_TO_PAY_A_COPY)[0] == [True, True]
    assert chosen(4, tokens=decode_weights.TOKENS_TO_PAY_A_COPY - 1)[0] == [False, False]


def test_the_rule():
    assert break_even(512, 1536, torch.float32, CPU) == 256
    assert break_even(512, 1536, torch.bfloat16, CPU, batch=4) == 64
    assert break_even(64, 192, torch.float32, CPU) == 0  # too small
    assert break_even(512, 1536, torch.float64, CPU) == 0  # no compiled product
    assert break_even(512, 1536, torch.float32, torch.device("cuda")) == 0  # not measured


def test_without_a_compiler_auto_is_dense(build, monkeypatch, every_matrix_pays):
    monkeypatch.setattr(column_product, "_library", lambda: None)
    weights = DecodeWeights(build({"k": 4}))
    with weights.in_use(1):
        assert [(choice.by_columns, choice.implementation) for choice in weights.choices] == [(False, "gathered")] * 2


def test_what_makes_no_sense_is_refused(build, ids):
    with pytest.raises(ValueError, match="sparse=yes: give True, False or 'auto'"):
        generate(build(), ids, 1, sparse="yes")
    with pytest.raises(ValueError, match="weights of another model"):
        generate(build(), ids, 1, sparse=DecodeWeights(build()))
