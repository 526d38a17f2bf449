"""Trading k under one budget: the sum stays, the bounds hold, and energies draw together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from topklm.callbacks import AdaptiveK, Sparsity
from topklm.callbacks.adaptive_k import trade


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.floats(0, 1), st.integers(0, 10), st.integers(0, 10), st.integers(1, 5)),
        max_size=9,
    ),
    st.floats(0, 0.2),
)
def test_a_trade_keeps_the_sum_and_the_bounds_and_goes_from_rich_to_poor(sites, tolerance):
    ks, energy, below, above, amounts = (list(column) for column in zip(*sites, strict=True)) if sites else ([],) * 5
    least, most = [max(1, k - b) for k, b in zip(ks, below)], [k + a for k, a in zip(ks, above)]  # noqa: B905
    after = trade(ks, energy, least=least, most=most, amounts=amounts, tolerance=tolerance)
    assert sum(after) == sum(ks)
    assert all(low <= k <= high for low, k, high in zip(least, after, most, strict=True))
    gave = [e for e, k, new in zip(energy, ks, after, strict=True) if new < k]
    took = [e for e, k, new in zip(energy, ks, after, strict=True) if new > k]
    assert not gave or min(gave) > max(took) + tolerance
    can = [(e, k > low, k < high) for e, k, low, high in zip(energy, ks, least, most, strict=True)]
    gap = max((e for e, gives, _ in can if gives), default=0) - min((e for e, _, takes in can if takes), default=1)
    assert bool(gave) == (gap > tolerance)


def test_pairs_from_both_ends():
    bounds = {"least": [1] * 5, "most": [99] * 5, "amounts": [3, 1, 2, 4, 5]}
    assert trade([10] * 5, [0.9, 0.1, 0.5, 0.2, 0.8], tolerance=0.05, **bounds) == [9, 11, 10, 14, 6]


class Feed(Sparsity):
    """In the place of the telemetry: layers of given slopes, energy = min(1, slope * k)."""

    def __init__(self, slopes):
        super().__init__()
        self.slopes = slopes

    def on_train_batch_end(self, trainer, module, *args):
        if module.is_log_step:
            for site, slope in zip(module.model.sites, self.slopes, strict=True):
                k = int(site.k)
                module.add_metrics({f"k/{site.label}": k, f"sparsity/energy_kept/{site.label}": min(1.0, slope * k)})


def steps(watched, trainer, callbacks, n, k_of=None, start=True):
    """What a run does with k, without the model; yields k of each step."""
    if start:
        for callback in callbacks:
            callback.on_train_start(trainer, watched)
    for _ in range(n):
        for callback in callbacks:
            callback.on_train_batch_start(trainer, watched, None, watched.global_step)
        watched.model.set_k([k_of(site, watched.global_step) if k_of else site.k_final for site in watched.model.sites])
        watched.global_step += 1
        for callback in callbacks:
            callback.on_train_batch_end(trainer, watched)
        watched.log_row()
        yield [int(site.k) for site in watched.model.sites]


def test_layers_draw_level_and_stop(module, trainer):
    watched = module(topk={"k": 8}, steps=200)
    history = list(steps(watched, trainer(), [Feed([0.03, 0.09]), AdaptiveK(every_n_steps=5, max_share=3.0)], 180))
    assert history[0] == history[5] == [8, 8]  # the first row is left out
    assert history[6] == [9, 7]
    assert all(sum(k) == 16 for k in history)
    assert history[-1] == [12, 4]  # 0.36 and 0.36
    assert history[100] == history[-1]


def test_bounds_and_the_end_of_its_time(module, trainer):
    settings = {"every_n_steps": 1, "move": 0.2}
    watched = module(topk={"k": [10, 8]}, steps=100)
    assert list(steps(watched, trainer(), [Feed([0.0, 0.1]), AdaptiveK(**settings)], 50))[-1] == [14, 4]  # half of 8
    watched = module(topk={"k": [10, 8]}, steps=100)
    bounded = AdaptiveK(**settings, max_share=1.2)
    assert list(steps(watched, trainer(), [Feed([0.0, 0.1]), bounded], 50))[-1] == [12, 6]
    watched = module(topk={"k": [10, 8]}, steps=100)
    early = AdaptiveK(**settings, until=0.03)
    assert list(steps(watched, trainer(), [Feed([0.0, 0.1]), early], 50))[-1] == [14, 4]
    watched = module(topk={"k": [10, 8]}, steps=100)
    assert list(steps(watched, trainer(), [Feed([0.0, 0.1]), AdaptiveK(enabled=False)], 50))[-1] == [10, 8]


def test_it_waits_for_the_anneal(module, trainer):
    watched = module(topk={"k": 8}, steps=100)
    ks = steps(
        watched, trainer(), [Feed([0.01, 0.09]), AdaptiveK(every_n_steps=4)], 40,
        k_of=lambda site, step: max(site.k_final, 16 - step // 2),
    )  # fmt: skip
    history = list(ks)
    assert all(k[0] == k[1] for k in history[:20])
    assert history[15:22] == [[9, 9], *[[8, 8]] * 5, [9, 7]]


def test_a_row_that_began_in_the_anneal_does_not_count(module, trainer):
    """It has the mean of steps at a larger k, and a layer that has come down last would seem to keep most."""

    class Late(Feed):
        def on_train_batch_end(self, trainer, module, *args):
            self.slopes = [0.01, 0.09] if module.global_step == 10 else [0.05, 0.05]
            super().on_train_batch_end(trainer, module, *args)

    watched = module(topk={"k": 8}, steps=100, log_every=10)
    ks = steps(
        watched, trainer(), [Late([]), AdaptiveK(every_n_steps=1)], 60,
        k_of=lambda site, step: max(site.k_final, 12 - step),
    )  # fmt: skip
    assert list(ks)[10:] == [[8, 8]] * 50


def test_sites_of_other_names_do_not_trade(module, trainer):
    watched = module(topk={"k": 8, "sites": ["mlp_neurons", "resid_post_mlp"]}, steps=100)
    feed = Feed([0.01, 0.1, 0.01, 0.1])  # one of each name in each of two blocks: equal energies
    assert list(steps(watched, trainer(), [feed, AdaptiveK(every_n_steps=1)], 20))[-1] == [8] * 4


def test_a_continued_run_is_the_same_run(module, trainer):
    def parts():
        return [Feed([0.02, 0.09]), AdaptiveK(every_n_steps=5, max_share=3.0)]

    straight = list(steps(module(topk={"k": 8}), trainer(), parts(), 40))
    for stop in (3, 5, 12, 20):
        first, callbacks, checkpoint = module(topk={"k": 8}), parts(), {}
        ks = list(steps(first, trainer(), callbacks, stop))
        callbacks[1].on_save_checkpoint(trainer(), first, checkpoint)
        torch.save(checkpoint, path := trainer().default_root_dir / "c.ckpt")
        second, callbacks = module(topk={"k": 8}), parts()
        second.model.load_state_dict(first.model.state_dict())
        second.global_step = stop
        callbacks[1].on_load_checkpoint(trainer(), second, torch.load(path, weights_only=True))
        assert [site.k_final for site in second.model.sites] == [site.k_final for site in first.model.sites]
        assert ks + list(steps(second, trainer(), callbacks, 40 - stop)) == straight


@pytest.mark.parametrize(
    "wrong",
    [{"enabled": None}, {"every_n_steps": 0}, {"move": 0}, {"tolerance": -1}, {"min_share": 1.5},
     {"max_share": 0.5}, {"until": -0.1}],
)  # fmt: skip
def test_a_setting_that_will_not_do(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"callbacks.adaptive_k.{name}="):
        AdaptiveK(**wrong)
