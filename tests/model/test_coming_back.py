"""What may revive a silenced neuron without callbacks: a gradient before selection sets in, or past it."""

import pytest
import torch

from topklm.model import TopKConfig, TopKSite
from topklm.schedules import interpolate

STEPS, WIDTH, K, SILENT = 100, 8, 2, 4


def fired(ks, **topk):
    """Trains the values of one token: whether the silenced one fires, by step.

    The loss wants it to be the largest. But it begins below two others, so with k = 2 it is out."""
    site = TopKSite(0, "resid_post_mlp", WIDTH, K, TopKConfig(k=K, **topk))
    x = torch.full((1, 1, WIDTH), -1.0)
    x[..., :K], x[..., SILENT] = 1.0, 0.0
    x.requires_grad_()
    wanted = torch.zeros(WIDTH)
    wanted[:K], wanted[SILENT] = 2.0, 3.0
    optimizer = torch.optim.SGD([x], lr=0.1)
    seen = []
    for step in range(STEPS):
        site.set_k(ks[step])
        site.set_progress(step / STEPS)
        y = site(x)
        seen.append(bool(y[0, 0, SILENT]))
        (y - wanted).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return seen


CONSTANT = [K] * STEPS


def test_under_the_masked_gradient_it_stays_silent():
    assert not any(fired(CONSTANT))


@pytest.mark.parametrize("reach", [2.0, None])
def test_a_straight_through_gradient_brings_it_back(reach):
    seen = fired(CONSTANT, grad="ste", ste_scale=0.1, ste_reach=reach)
    assert not any(seen[:10])
    assert all(seen[-10:])


def test_not_beyond_its_reach_nor_after_its_end():
    assert not any(fired(CONSTANT, grad="ste", ste_scale=0.1, ste_reach=1.0))
    assert not any(fired(CONSTANT, grad="ste", ste_scale=0.1, ste_until=0.02))


def test_annealing_brings_it_back_before_selection_sets_in():
    ks = [round(interpolate("linear", 2 * step / STEPS, WIDTH, K)) for step in range(STEPS)]
    assert (ks[0], ks[STEPS // 2]) == (WIDTH, K)
    assert all(fired(ks)[1:])
