"""What TopK keeps, counted by hand from the tensors that go in and come out."""

import numpy as np
import pytest
import torch

from topklm.callbacks import Sparsity


@pytest.fixture
def passes():
    """passes(module, n): n training forward passes; for each site, its inputs and outputs, (tokens, 16) each."""

    def run(module, n, first=0):
        seen = {site.label: ([], []) for site in module.model.sites}

        def note(site, inputs, output):
            seen[site.label][0].append(sum(inputs).detach().flatten(0, 1))  # the stream and what is added to it
            seen[site.label][1].append(output.detach().flatten(0, 1))

        hooks = [site.register_forward_hook(note) for site in module.model.sites]
        for i in range(first, first + n):
            module.model(torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(i)))
        for hook in hooks:
            hook.remove()
        return {label: (torch.cat(x), torch.cat(y)) for label, (x, y) in seen.items()}

    return run


@pytest.mark.parametrize("topk", [{"k": 3}, {"k": [2, 5], "relu": True}, {"k": 4, "select": "magnitude"}])
def test_means_over_the_interval(module, trainer, passes, topk):
    watched, callback = module(topk=topk, log_every=2), Sparsity()
    callback.setup(trainer(), watched, "fit")
    passes(watched, 2)
    watched.global_step = 2
    callback.on_train_batch_end(trainer(), watched)
    seen = passes(watched, 2, first=2)  # the first two belong to the row before
    watched.global_step = 3
    watched.row = {}
    callback.on_train_batch_end(trainer(), watched)
    assert watched.row == {}
    watched.global_step = 4
    callback.on_train_batch_end(trainer(), watched)
    for site in watched.model.sites:
        x, y = seen[site.label]
        assert watched.row[f"k/{site.label}"] == site.k_final
        assert watched.row[f"sparsity/l0/{site.label}"] == pytest.approx((y != 0).sum(1).float().mean().item())
        kept = (y.square().sum(1) / x.square().sum(1)).mean().item()
        assert watched.row[f"sparsity/energy_kept/{site.label}"] == pytest.approx(kept, rel=1e-4)
        order = x.abs() if topk.get("select") == "magnitude" else x
        smallest = order.sort(dim=1, descending=True).values[:, site.k_final - 1].mean().item()
        assert watched.row[f"sparsity/threshold/{site.label}"] == pytest.approx(smallest, rel=1e-4)


def test_a_histogram_of_firing_rates(module, trainer, passes):
    watched, callback = module(topk={"k": 1}), Sparsity()
    callback.setup(trainer(), watched, "fit")
    seen = passes(watched, 3)
    watched.global_step = 3
    callback.on_train_batch_end(trainer(), watched)
    callback.on_validation_end(trainer(), watched)
    rate = (seen["layer_00"][1] != 0).float().mean(0).numpy()
    expected, _ = np.histogram(np.log10(np.maximum(rate, 1e-6)), np.linspace(-6, 0, 25))
    counts, edges = watched.histograms["sparsity/firing_rate_log10/layer_00"]
    assert counts.tolist() == expected.tolist()
    assert counts.sum() == 16
    assert (edges[0], edges[-1], len(edges)) == (-6, 0, 25)


def test_switched_off_it_logs_k_alone(module, trainer, passes):
    watched, callback = module(), Sparsity(enabled=False)
    callback.setup(trainer(), watched, "fit")
    passes(watched, 1)
    watched.global_step = 1
    callback.on_train_batch_end(trainer(), watched)
    callback.on_validation_end(trainer(), watched)
    assert watched.row == {"k/layer_00": 3, "k/layer_01": 3}
    assert watched.histograms == {}


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_interval_goes_on_after_a_checkpoint(module, trainer, passes, ranks):
    """On two ranks the counters in the checkpoint are the sum of both, and one rank alone takes them up."""
    straight, callback = module(log_every=4), Sparsity()
    callback.setup(trainer(), straight, "fit")
    passes(straight, 4)
    straight.global_step = 4
    callback.on_train_batch_end(trainer(), straight)

    stopped, saving, checkpoint = module(log_every=4), Sparsity(), {}
    saving.setup(trainer(), stopped, "fit")
    passes(stopped, 2)
    saving.on_save_checkpoint(trainer(), stopped, checkpoint)
    rows = []
    for rank in range(ranks):
        resumed, loading = module(log_every=4), Sparsity()
        loading.setup(trainer(ranks, rank), resumed, "fit")
        loading.on_load_checkpoint(trainer(ranks, rank), resumed, checkpoint)
        if rank == 0:
            passes(resumed, 2, first=2)
        rows.append([site.interval() for site in resumed.model.sites])
    assert rows[1:] == [[None, None]] * (ranks - 1)
    for site, interval in zip(straight.model.sites, rows[0], strict=True):
        assert interval.tokens == 4 * 48
        assert interval.l0 == straight.row[f"sparsity/l0/{site.label}"]
        assert interval.energy_kept == pytest.approx(straight.row[f"sparsity/energy_kept/{site.label}"])


def test_ranks_add_up(module, trainer, passes):
    """The other rank has three times the tokens, and means of its own."""
    watched, callback, checkpoint = module(), Sparsity(), {}
    other = {
        "tokens": 3 * 48,
        "sums": torch.tensor([3 * 48 * 0.1, 3 * 48 * -2.0, 3 * 48 * 2.0]),
        "fired_d": 3 * 48 // 8,
    }

    def reduce(own, op):
        assert op == "sum"
        return own + {(): other["tokens"], (3,): other["sums"], (16,): other["fired_d"]}[tuple(own.shape)]

    site = watched.model.sites[0]
    host = trainer(2, reduce=reduce)
    callback.setup(host, watched, "fit")
    x, y = passes(watched, 1)[site.label]
    callback.on_save_checkpoint(host, watched, checkpoint)
    assert checkpoint["sparsity_interval"]["counters"][site.label]["tokens"] == 4 * 48
    watched.global_step = 1
    callback.on_train_batch_end(host, watched)
    l0 = (y != 0).sum(1).float().mean().item()
    energy = (y.square().sum(1) / x.square().sum(1)).mean().item()
    assert watched.row[f"sparsity/l0/{site.label}"] == pytest.approx((l0 + 3 * 2.0) / 4)
    assert watched.row[f"sparsity/energy_kept/{site.label}"] == pytest.approx((energy + 3 * 0.1) / 4)
    smallest = torch.where(y != 0, y, torch.inf).amin(1).mean().item()
    assert watched.row[f"sparsity/threshold/{site.label}"] == pytest.approx((smallest - 3 * 2.0) / 4, rel=1e-4)


@pytest.mark.parametrize("enabled", ["no", 1, None])
def test_neither_on_nor_off(enabled):
    with pytest.raises(ValueError, match=f"callbacks.sparsity.enabled={enabled}: give true or false"):
        Sparsity(enabled=enabled)
