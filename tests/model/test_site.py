"""Telemetry of a site: what it counts, when it counts, and that compilation and accumulation do not change it."""

from dataclasses import asdict

import torch
from torch._dynamo.testing import CompileCounter

from topklm.model import TopKConfig, TopKSite, topk


def site(k: int = 3, width: int = 12, **topk) -> TopKSite:
    return TopKSite(0, "resid_post_mlp", width, k, TopKConfig(**topk))


def test_counts_what_fires():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 12)
    s = site()
    y = torch.cat([s(x[:1]), s(x[1:])])  # two micro-batches
    interval = s.interval()
    assert interval.tokens == 10
    assert interval.l0 == 3
    torch.testing.assert_close(interval.firing_rate_d, (y != 0).float().mean((0, 1)))
    energy = y.square().sum(-1) / x.square().sum(-1)
    assert abs(interval.energy_kept - energy.mean()) < 1e-6
    assert abs(interval.threshold - x.topk(3).values[..., -1].mean()) < 1e-6
    s.reset_interval()
    assert s.interval() is None


def test_tokens_since_fired_counts_on_and_starts_anew_on_firing():
    s = site(k=1, width=3)
    first, second = torch.tensor([[[5.0, 1.0, 0.0]] * 4]), torch.tensor([[[0.0, 1.0, 5.0]] * 6])
    s(first)
    s.reset_interval()
    s(second)
    assert s.tokens_since_fired_d.tolist() == [6, 10, 0]


def test_counts_in_training_only_and_can_be_turned_off():
    x = torch.randn(2, 5, 12)
    s = site().eval()
    s(x)
    assert s.interval() is None
    s.train().record = False
    s(x)
    assert s.interval() is None


def test_takes_in_what_is_added():
    x, added = torch.randn(2, 5, 12), torch.randn(2, 5, 12, dtype=torch.bfloat16)
    apart, s = site(), site()
    assert torch.equal(s(x, added), apart(x + added))
    torch.testing.assert_close(asdict(s.interval()), asdict(apart.interval()))


def test_the_same_under_compile():
    torch.manual_seed(0)
    x, added = torch.randn(2, 4, 5, 12)
    plain, compiled = site(), site()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for k in (3, 5, 2):
        for s in (plain, compiled):
            s.set_k(k)
        torch.testing.assert_close(compiled(x, added), plain(x, added))
    torch.testing.assert_close(asdict(compiled.interval()), asdict(plain.interval()))
    assert torch.equal(compiled.tokens_since_fired_d, plain.tokens_since_fired_d)


def test_counters_are_not_weights():
    assert list(site().state_dict()) == ["k"]


def test_an_interval_can_be_taken_up_again():
    s, other = site(), site()
    s(torch.randn(2, 5, 12))
    other.load_interval({name: counter.clone() for name, counter in s.interval_counters().items()})
    torch.testing.assert_close(asdict(other.interval()), asdict(s.interval()))


def test_estimates_in_training_up_to_exact_from_and_never_in_evaluation():
    x = torch.randn(40, 12)
    s, exact, about = site(impl="statistical", exact_from=0.5), topk(x, 3), topk(x, 3, impl="statistical")
    assert not torch.equal(exact, about)
    for progress, expected in ((0.1, about), (0.49, about), (0.5, exact), (1.0, exact), (0.2, about)):
        s.set_progress(progress)
        assert torch.equal(s.train()(x), expected)
        assert torch.equal(s.eval()(x), exact)


def test_the_straight_through_gradient_ends_and_is_none_of_evaluations():
    s = site(grad="ste", ste_scale=0.5, ste_reach=None, ste_until=0.6)
    x = torch.randn(5, 12, requires_grad=True)
    kept = topk(x, 3) != 0
    for progress, scale in ((0.1, 0.5), (0.6, 0.5), (0.61, 0.0)):
        s.set_progress(progress)
        (gradient,) = torch.autograd.grad(s.train()(x).sum(), x)
        assert torch.equal(gradient, torch.where(kept, 1.0, scale))
        (gradient,) = torch.autograd.grad(s.eval()(x).sum(), x)
        assert torch.equal(gradient, kept.float())


def test_a_bias_acts_in_training_only_and_where_turned_on():
    x, s = torch.randn(40, 12), site()
    s.bias_d[4] = 50.0
    assert torch.equal(s(x), topk(x, 3))
    s.biased = True
    assert torch.equal(s(x)[:, 4], x[:, 4])
    assert torch.equal(s.eval()(x), topk(x, 3))


def test_progress_and_bias_recompile_nothing():
    counter, x = CompileCounter(), torch.randn(4, 12)
    s = site(impl="statistical", grad="ste", ste_until=0.3)
    s.biased = True
    f = torch.compile(s, backend=counter, fullgraph=True)
    for step in range(10):
        s.set_progress(step / 10)
        s.set_k(12 - step)
        s.bias_d[step] = 1.0
        f(x)
    assert counter.frame_count == 1
