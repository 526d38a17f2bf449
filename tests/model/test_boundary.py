"""The packed residual stream: the same bits, fewer bytes, and packed where a block's input is sparse."""

import pytest
import torch

from topklm.model import boundary, topk
from topklm.model.boundary import pack, packed_bytes, pays, saved_packed, unpack


def bits(x):
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "k"), [(64, 8), (64, 1), (100, 30), (257, 3), (37, 37), (8, 1)])
@pytest.mark.parametrize("relu", [False, True])
def test_the_same_bits(dtype, d, k, relu):
    torch.manual_seed(0)
    x = topk(torch.randn(3, 7, d).to(dtype), k, relu=relu)
    x[0, 0] = 0.0  # a token with nothing
    packed = pack(x, k)
    assert torch.equal(bits(unpack(packed)), bits(x))
    assert unpack(packed).shape == x.shape
    assert packed.nbytes == 21 * packed_bytes(d, k, x.element_size())


@pytest.mark.parametrize("k", [2, 20])  # neurons' numbers, and a mask
def test_what_is_no_ordinary_number_is_kept(k):
    x = torch.zeros(2, 64)
    x[0, 63], x[0, 5], x[1, 0], x[1, 62] = -0.0, torch.nan, -torch.inf, 1e-45
    assert (pack(x, k).places.dtype == torch.int16) == (k == 2)
    assert torch.equal(bits(unpack(pack(x, k))), bits(x))


def test_the_smaller_form_and_only_where_it_pays():
    assert packed_bytes(1024, 128, 2) == 128 * 2 + 1024 // 8  # a mask: 384 of 2,048 bytes
    assert packed_bytes(1024, 32, 2) == 32 * 2 + 32 * 2  # numbers
    assert packed_bytes(40_000, 16, 2) == 16 * 2 + 5_000  # too wide for numbers
    assert packed_bytes(32_767, 16, 4) == 16 * 4 + 16 * 2
    assert [pays(64, k, 2) for k in (1, 59, 60, 64, 90)] == [True, True, False, False, False]


def test_autograd_keeps_it_packed_and_nothing_else(monkeypatch):
    packed = []
    monkeypatch.setattr(boundary, "pack", lambda x, k: packed.append((x, k)) or pack(x, k))
    x = topk(torch.randn(64, 64), 8).requires_grad_()
    weight = torch.randn(64, 64, requires_grad=True)
    with saved_packed(x, 8):
        y = torch.nn.functional.linear(x, weight)
    assert len(packed) == 1  # and not the weight, which has the same shape
    assert torch.equal(packed[0][0], x)
    ours = torch.autograd.grad(y.square().sum(), (x, weight))
    theirs = torch.autograd.grad(torch.nn.functional.linear(x, weight).square().sum(), (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("topk_config", "packs"),
    [({"k": 4}, 2), ({"k": 31}, 0), ({"k": 4, "impl": "statistical"}, 0), ({"sites": ()}, 0), ({"layers": (1,)}, 1)],
)
def test_which_boundaries_are_packed(build, ids, monkeypatch, topk_config, packs):
    """Of three blocks: those after a TopK block whose k is known and small enough."""
    packed = []
    monkeypatch.setattr(boundary, "pack", lambda x, k: packed.append(k) or pack(x, k))
    model = build({"k": 4, **topk_config})
    model.set_checkpointing("block_sparse")
    model.loss(ids, ids.roll(-1, 1)).backward()
    assert packed == [4] * packs


@pytest.mark.parametrize("place", ["site", "block"])
@pytest.mark.parametrize("k", [2, 4])  # neurons' numbers, and a mask
def test_what_a_hook_adds_is_not_lost(build, ids, place, k):
    def more(module, inputs, y):
        return y + 0.5

    grads = []
    for how in ("none", "block_sparse"):
        model = build({"k": k})
        model.set_checkpointing(how)
        (model.blocks[0] if place == "block" else model.sites[0]).register_forward_hook(more)
        model.loss(ids, ids.roll(-1, 1)).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_an_exact_choice_is_packed_again_and_a_loaded_k_is_known(build):
    site = build({"k": 4, "impl": "statistical", "exact_from": 0.5}).sites[0]
    assert site.most_kept is None
    site.set_progress(0.5)
    assert site.most_kept == 4
    model, other = build(), build()
    model.set_k([7, 9])
    other.load_state_dict(model.state_dict())
    assert [site.most_kept for site in other.sites] == [7, 9]
