"""Sampling: greedy equals argmax by recomputation, draws are those of torch.multinomial, seeds decide, and training is
not disturbed."""

import subprocess
import sys

import pytest
import torch

from topklm.model import generate
from topklm.model.generate import CANDIDATES, _sample


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


def test_deterministic_algorithms_change_no_sample(build, ids):
    """On CUDA they refuse a cumsum of floats, so the sums are the CPU's there."""
    usual = generate(build(), ids[:, :5], 12, top_p=0.9, seed=3)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(generate(build(), ids[:, :5], 12, top_p=0.9, seed=3), usual)
    finally:
        torch.use_deterministic_algorithms(False)


def test_it_stops_at_the_end_of_the_positions(build, ids):
    assert generate(build(), ids[:, :20], 50).shape == (2, 24)


def test_only_the_last_position_of_a_prompt_meets_the_head(build, ids):
    model, seen = build(), []
    model.head.register_forward_hook(lambda _, x, y: seen.append(y.shape[1]))
    generate(model, ids[:, :9], 3)
    assert seen == [1, 1, 1]


@pytest.mark.parametrize("spread", [8.0, 0.1])  # a nucleus of a few candidates, and one of nearly the whole vocabulary
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("steps", [None, 3])  # logits on a coarse grid tie
@pytest.mark.parametrize("vocab", [50, 3 * CANDIDATES])
def test_a_draw_is_that_of_multinomial_over_a_sorted_vocabulary(spread, top_p, steps, vocab):
    logits_bv = spread * torch.randn(3, vocab, generator=torch.Generator().manual_seed(vocab))
    if steps is not None:
        logits_bv = (logits_bv / spread * steps).round() / steps * spread
    p_bv, order_bv = (logits_bv / 0.8).softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept_bv = p_bv.masked_fill(p_bv.cumsum(-1) - p_bv >= top_p, 0)
    for seed in range(5):
        drawn = torch.multinomial(kept_bv, 1, generator=torch.Generator().manual_seed(seed))
        sampled = _sample(logits_bv, 0.8, top_p, torch.Generator().manual_seed(seed))
        assert torch.equal(sampled, order_bv.gather(-1, drawn))


def test_logits_that_are_not_finite_are_no_distribution(build, ids):
    model = build()
    with torch.no_grad():
        model.norm_out.gain.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        generate(model, ids[:, :3], 1)
    assert model.training


def test_nothing_is_compiled_for_it(build, ids):
    model, compiled = build(), []
    for block in model.blocks:
        block.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    generate(model, ids[:, :5], 4)
    assert compiled == []
    model(ids)
    assert compiled


def test_importing_the_model_leaves_the_compiler_out():
    """It takes seconds, and generation asks for it when it runs."""
    asked = "import sys, topklm.model; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], timeout=100).returncode == 0
