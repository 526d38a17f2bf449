"""Costs, counted by formula and by watching the model at work."""

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from topklm.model import count_flops, count_parameters, parameters_by_part

ALL = ("resid_post_attn", "mlp_neurons", "resid_post_mlp")


def counted(model, ids):
    """FLOPs per token of forward and backward. In bfloat16 attention is written out on a CPU, and its products are
    counted like any others."""
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        model.loss(ids, ids).backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("sites", [(), ALL[2:], ALL])
@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2, "tied": True}, {"n_kv_heads": 1, "qk_norm": False}])
def test_training_is_what_the_counter_of_torch_counts(build, ids, sites, changes):
    model = build({"sites": sites}, **changes)
    assert counted(model, ids) == count_flops(model.config).training


def test_training_is_palms_formula(build):
    d, v, n, f, t = 32, 97, 3, 128, 24
    matrices = n * (4 * d * d + 3 * d * f) + v * d
    for tied in (False, True):
        assert count_flops(build(tied=tied).config).training == 6 * matrices + 12 * n * d * t


def test_checkpointed_blocks_are_computed_twice(build, ids):
    model = build()
    model.set_checkpointing("block")
    flops = count_flops(model.config)
    with set_checkpoint_early_stop(False):  # which spares a dense block its last product
        found = counted(model, ids)
    assert found == flops.hardware(checkpointing=True) > flops.hardware(False) == flops.training


@pytest.mark.parametrize(
    "topk",
    [
        {"sites": ()},
        {"k": 5},
        {"k": 5, "n_nontopk": 0},
        {"k": 5, "sites": ALL},
        {"k": 5, "sites": ALL, "layers": (1,)},
        {"k_ratio": [0.25, 0.5], "sites": ALL[1:]},
    ],
)
def test_active_is_what_products_with_non_zeros_cost(build, ids, topk):
    model = build(topk, n_kv_heads=2).eval()
    costs = []
    for linear in [module for module in model.modules() if isinstance(module, torch.nn.Linear)]:
        linear.register_forward_pre_hook(
            lambda module, args: costs.append(2 * int((args[0] != 0).sum()) * module.out_features)
        )
    with torch.no_grad():
        model(ids)
    flops = count_flops(model.config)
    assert sum(costs) / ids.numel() == pytest.approx(flops.blocks_active + flops.head_active, rel=1e-12)
    assert flops.active == 3 * (flops.blocks_active + flops.head_active + flops.attention)
    assert (flops.active == flops.training) == (not model.sites)


def test_causal_attention(build):
    t, e = 24, 32
    seen = sum(range(1, t + 1)) / t  # positions, on average
    flops = count_flops(build().config)
    assert flops.attention_causal == pytest.approx(3 * 4 * e * seen)
    assert flops.training - flops.training_causal == pytest.approx(3 * (flops.attention - flops.attention_causal))


def test_parameters(build):
    d, v, n, f = 32, 97, 3, 128
    blocks = n * (4 * d * d + 3 * d * f + 2 * d + 2 * 8)
    assert parameters_by_part(build()) == {"embedding": v * d, "blocks": blocks, "head": v * d + d}
    assert parameters_by_part(build(tied=True)) == {"embedding": v * d, "blocks": blocks, "head": d}
    for model in (build(), build(tied=True)):
        assert sum(parameters_by_part(model).values()) == count_parameters(model)
