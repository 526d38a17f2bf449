"""Sampling: greedy equals argmax by recomputation, seeds decide, and training is not disturbed."""

import torch

from topklm.model import generate


def test_greedy_is_argmax_by_recomputation(build, ids):
    model = build().eval()
    out = generate(model, ids[:, :5], 10, temperature=0)
    expected = ids[:, :5]
    for _ in range(10):
        expected = torch.cat([expected, model(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(out, expected)


def test_a_seed_decides_and_training_goes_on_as_before(build, ids):
    model = build().train()
    before = torch.get_rng_state()
    counted = [site.tokens.clone() for site in model.sites]
    a, b, c = (generate(model, ids[:, :5], 12, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert [site.tokens for site in model.sites] == counted


def test_top_p_of_almost_nothing_is_greedy(build, ids):
    model = build()
    assert torch.equal(generate(model, ids[:, :5], 8, top_p=1e-6), generate(model, ids[:, :5], 8, temperature=0))


def test_it_stops_at_the_end_of_the_positions(build, ids):
    assert generate(build(), ids[:, :20], 50).shape == (2, 24)
