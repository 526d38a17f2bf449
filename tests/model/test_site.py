"""Telemetry of a site: what it counts, when it counts, and that compilation and accumulation do not change it."""

from dataclasses import asdict

import torch

from topklm.model import TopKConfig, TopKSite


def site(k: int = 3, width: int = 12) -> TopKSite:
    return TopKSite(0, "resid_post_mlp", width, k, TopKConfig())


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


def test_the_same_under_compile():
    torch.manual_seed(0)
    x = torch.randn(4, 5, 12)
    plain, compiled = site(), site()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for k in (3, 5, 2):
        for s in (plain, compiled):
            s.set_k(k)
        torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(asdict(compiled.interval()), asdict(plain.interval()))
    assert torch.equal(compiled.tokens_since_fired_d, plain.tokens_since_fired_d)


def test_counters_are_not_weights():
    assert list(site().state_dict()) == ["k"]


def test_an_interval_can_be_taken_up_again():
    s, other = site(), site()
    s(torch.randn(2, 5, 12))
    other.load_interval({name: counter.clone() for name, counter in s.interval_counters().items()})
    torch.testing.assert_close(asdict(other.interval()), asdict(s.interval()))
