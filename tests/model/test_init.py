"""Initialisation and muP-style transfer: what the table says, and that widths behave alike."""

import pytest
import torch

from topklm.model import ModelConfig, attention
from topklm.model.init import rules
from topklm.training.optim import build_optimizer
from topklm.training.sections import OptimizerConfig


def test_parameters_start_as_the_table_says(build):
    model = build(vocab_size=5000, d_model=128)
    for name, rule in rules(model).items():
        parameter = model.get_parameter(name)
        if rule.std is None:
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(rule.std, rel=0.05)
            assert abs(parameter.mean().item()) < 0.1 * rule.std


def test_only_matrices_decay(build):
    for name, rule in rules(build()).items():
        expected = name.endswith((".qkv.weight", ".out.weight", ".gate_up.weight", ".down.weight"))
        assert bool(rule.parts) == expected
        assert rule.decay == (expected or name == "head.weight")


def test_stacked_matrices_are_told_apart(build):
    """The parts, cut out of a stacked parameter, are queries, keys, values, gate and up of the forward pass."""
    model = build(d_model=48, n_heads=6, n_kv_heads=2, d_ff=40)
    parts = {name: rule.parts for name, rule in rules(model).items() if name.startswith("blocks.0.")}
    assert parts["blocks.0.attn.qkv.weight"] == (48, 16, 16)
    assert parts["blocks.0.mlp.gate_up.weight"] == (40, 40)
    assert parts["blocks.0.attn.out.weight"] == (48,)
    x = torch.randn(5, 48)
    block = model.blocks[0]
    heads = block.attn.qkv(x).view(5, -1, 8).split((6, 2, 2), dim=1)
    for rows, part in zip(block.attn.qkv.weight.split((48, 16, 16)), heads, strict=True):
        torch.testing.assert_close(x @ rows.T, part.flatten(1))
    gate, up = (x @ rows.T for rows in block.mlp.gate_up.weight.split((40, 40)))
    torch.testing.assert_close((torch.nn.functional.silu(gate) * up) @ block.mlp.down.weight.T, block.mlp(x))


@pytest.fixture
def moved(build, ids, monkeypatch):
    """moved(width, heads, mup, optimizer): how far logits, and the attention's, go in a few steps at one rate."""
    seen = []
    attend = attention.attend

    def spy(q, k, v, is_causal, scale, sees_b1ts=None):
        seen.append(q @ k.transpose(2, 3) * scale)
        return attend(q, k, v, is_causal, scale, sees_b1ts)

    monkeypatch.setattr(attention, "attend", spy)

    def measure(model):
        seen.clear()
        with torch.no_grad():
            return model(ids), torch.stack(seen[1:])  # the first block sees what the embedding's norm leaves

    def run(width, heads, mup, optimizer):
        changes = []
        for seed in range(3):
            mup_settings = {"mup_base_width": 32 if mup else None, "mup_base_head_dim": 8}
            model = build({"sites": ()}, seed, d_model=width, n_heads=heads, **mup_settings)
            before = measure(model)
            opt = build_optimizer(model, OptimizerConfig(name=optimizer, lr=3e-3, weight_decay=0.0))
            for _ in range(4):
                model.loss(ids, ids.roll(-1, 1)).backward()
                opt.step()
                opt.zero_grad()
            changes.append([(new - old).std().item() for new, old in zip(measure(model), before, strict=True)])
        return torch.tensor(changes).mean(0)

    return run


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("narrow", "wide"), [((64, 4), (512, 4)), ((64, 8), (512, 64))], ids=["wide-heads", "more-heads"]
)
def test_mup_levels_the_size_of_updates_over_widths(moved, optimizer, narrow, wide):
    """Coordinate check (Yang et al. 2022): at 8 times the width logits move about as far, whether heads become wider or
    more; and so do the attention's logits where heads keep their width."""
    logits, attention_logits = moved(*wide, True, optimizer) / moved(*narrow, True, optimizer)
    assert 0.5 < logits < 1.2
    assert (0.8 < attention_logits < 1.25) if wide[1] == 64 else attention_logits < 1.0
    plain, plain_attention = moved(*wide, False, optimizer) / moved(*narrow, False, optimizer)
    assert plain > 1.8
    assert plain_attention > 1.5


def test_mup_changes_nothing_at_the_base_width(build, ids):
    assert torch.equal(build(mup_base_width=32, mup_base_head_dim=8)(ids), build()(ids))


@pytest.mark.parametrize(("d_model", "n_heads"), [(128, 2), (768, 12), (2048, 16), (512, 2)])
def test_attention_scale(d_model, n_heads):
    """1/sqrt(e) without muP; with it 1/e, equal at the base width of a head, however many heads there are."""
    e = d_model // n_heads
    sizes = {"vocab_size": 300, "d_model": d_model, "n_heads": n_heads}
    assert ModelConfig(**sizes).attention_scale == pytest.approx(1 / e**0.5)
    mup = ModelConfig(**sizes, mup_base_width=128, mup_base_head_dim=64).attention_scale
    assert mup == pytest.approx(8 / e)
    assert (mup == pytest.approx(1 / e**0.5)) == (e == 64)
