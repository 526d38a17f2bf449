"""Muon by batches against torch's own, which takes one matrix after another."""

import pytest
import torch

from topklm.training import muon
from topklm.training.muon import BatchedMuon

SHAPES = [(16, 16)] * 3 + [(40, 16)] * 2 + [(16, 40)] * 2 + [(7, 3)]


@pytest.mark.parametrize("batch_bytes", [1, 2000, 64 << 20])
@pytest.mark.parametrize("options", [{}, {"nesterov": False, "momentum": 0.8, "weight_decay": 0.0, "ns_steps": 3}])
def test_equals_torchs_own(monkeypatch, batch_bytes, options):
    monkeypatch.setattr(muon, "BATCH_BYTES", batch_bytes)
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    made = [
        cls(parameters, lr=0.02, adjust_lr_fn="match_rms_adamw", **options)
        for cls, parameters in ((BatchedMuon, ours), (torch.optim.Muon, theirs))
    ]
    for _ in range(3):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        ours[2].grad = theirs[2].grad = None  # one that had no part in the loss
        for optimizer in made:
            optimizer.step()
    # Both round products to bfloat16; a product of several matrices may sum in another order.
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0.02 * 0.2 * max(mine.shape) ** 0.5 * 0.02)
    assert torch.equal(ours[2], theirs[2])
    states = [[state["momentum_buffer"] for state in optimizer.state.values()] for optimizer in made]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert made[0].state_dict()["param_groups"] == made[1].state_dict()["param_groups"]


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    matrices = [torch.randn(24, 60), torch.randn(60, 24)]
    for x, like in zip(muon.orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7), matrices, strict=True):
        assert x.shape == like.shape
        singular = torch.linalg.svdvals(x.float())
        assert 0.5 < singular.min() < singular.max() < 1.3
        cosine = torch.nn.functional.cosine_similarity(x.float().flatten(), like.flatten(), dim=0)
        assert cosine > 0.9
