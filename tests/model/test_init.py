"""Initialisation and muP-style transfer: what the table says, and that widths behave alike."""

import pytest
import torch

from topklm.model.init import rules
from topklm.training.config import OptimizerConfig
from topklm.training.optim import build_optimizer


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
        assert rule.matrix == expected
        assert rule.decay == (expected or name == "head.weight")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_mup_levels_the_size_of_updates_over_widths(build, ids, optimizer):
    """Coordinate check (Yang et al. 2022): after a few steps at one learning rate, logits have moved about as far at 8
    times the width."""

    def moved(width: int, mup: bool) -> float:
        config = {"d_model": width, "mup_base_width": 32 if mup else None}
        changes = []
        for seed in range(3):
            model = build({"sites": ()}, seed, **config)
            before = model(ids).detach()
            opt = build_optimizer(model, OptimizerConfig(name=optimizer, lr=3e-3, weight_decay=0.0))
            for _ in range(4):
                model.loss(ids, ids.roll(-1, 1)).backward()
                opt.step()
                opt.zero_grad()
            changes.append((model(ids) - before).std().item())
        return sum(changes) / 3

    assert 0.5 < moved(512, mup=True) / moved(64, mup=True) < 1.2
    assert moved(512, mup=False) / moved(64, mup=False) > 1.8


def test_mup_changes_nothing_at_the_base_width(build, ids):
    assert torch.equal(build(mup_base_width=32)(ids), build()(ids))
