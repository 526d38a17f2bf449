"""The probe: what it logs beside the model's own outputs, and that training does not notice it."""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

from topklm.callbacks import Probe
from topklm.data.windows import ValidationWindows
from topklm.interp import validation_sample
from topklm.training.summary import finite, layer_rows


@pytest.fixture
def windows(prepared):
    return ValidationWindows(prepared.validation, 24)


@pytest.fixture
def look(module, trainer, windows):
    """look(callback): the module after a validation at step 7."""

    def run(callback, watched=None, **options):
        watched = watched or module(topk={"k": 3}, vocab_size=300)
        watched.global_step = 7
        facts = {
            "precision_plugin": SimpleNamespace(val_step_context=contextlib.nullcontext),
            "datamodule": SimpleNamespace(validation=windows),
        }
        callback.on_validation_end(trainer(**facts, **options), watched)
        return watched

    return run


def test_overlaps_beside_the_outputs(look, windows):
    watched = look(Probe(tokens=480, firings=10))
    ids = validation_sample(windows, 480).ids_wt
    assert watched.latest["neurons/probe_tokens"] == ids.numel() == 480
    active = {}
    for site in watched.model.sites:
        site.register_forward_hook(lambda site, _, y: active.__setitem__(site.label, y != 0))
    with torch.no_grad():
        watched.model.eval()(ids)

    def overlap(a, b):
        return ((a & b).sum(-1) / (a | b).sum(-1)).mean().item()

    lower, upper = active["layer_00"], active["layer_01"]
    assert watched.latest["sparsity/overlap_layers/layer_00"] == pytest.approx(overlap(lower, upper))
    assert "sparsity/overlap_layers/layer_01" not in watched.latest
    assert watched.latest["sparsity/overlap_tokens/layer_01"] == pytest.approx(overlap(upper[:, 1:], upper[:, :-1]))
    for name in ("layers", "tokens"):
        assert watched.latest[f"sparsity/overlap_{name}_chance/layer_00"] == pytest.approx(3 / (32 - 3))


def test_neurons(look):
    watched = look(Probe(tokens=10**6, firings=20, shuffles=3))
    row = watched.latest
    assert 0 < row["neurons/unigram_entropy"] <= math.log2(20)
    for label in ("layer_00", "layer_01"):
        counts, edges = watched.histograms[f"neurons/token_entropy/{label}"]
        assert counts.sum() == 16 - row[f"neurons/token_entropy_left_out/{label}"]
        assert edges[0] <= row[f"neurons/token_entropy_median/{label}"] <= math.log2(20)
        assert 1 <= row[f"neurons/effective_rank/{label}"] <= 16
        assert row[f"neurons/topic_information_top/{label}"] >= row[f"neurons/topic_information_median/{label}"] > 0
        assert row[f"neurons/topic_information_top_shuffled/{label}"] > 0
        assert watched.histograms[f"neurons/topic_information_log10/{label}"][0].sum() == 16
    assert watched.rows[-1][0] == 7


def test_a_neuron_that_stands_for_a_topic(look, module, windows):
    """A neuron of the last site is made to fire in documents of topic A and nowhere else."""
    sample = validation_sample(windows, 10**6)
    in_a = (sample.topic_g == sample.topics.index("A"))[sample.document_wt]
    plain = look(Probe(tokens=10**6, firings=20)).latest
    watched, at = module(topk={"k": 3}, vocab_size=300), 0

    def plant(site, _, y):  # batches come in order
        nonlocal at
        part, at = in_a[at : at + len(y)], at + len(y)
        return torch.cat((torch.where(part, 1.0, 0.0)[..., None], y[..., 1:]), dim=-1)

    watched.model.sites[1].register_forward_hook(plant)
    planted = look(Probe(tokens=10**6, firings=20), watched).latest
    best = "neurons/topic_information_top/layer_01"
    share = in_a.double().mean().item()
    whole = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))  # what it tells: H(A)
    assert planted[best] > whole / 10 > plain[best]
    assert planted["neurons/topic_information_top_shuffled/layer_01"] < planted[best] / 3


def test_it_says_nothing_where_there_is_nothing(look, module):
    assert look(Probe(), module(topk={"sites": []}, vocab_size=300)).latest == {}
    assert look(Probe(enabled=False)).latest == {}
    assert look(Probe(), global_rank=1, world_size=2).latest == {}
    without = look(Probe(topic=None, firings=20)).latest
    assert not [name for name in without if "topic" in name]
    assert "neurons/effective_rank/layer_00" in without
    few = look(Probe(tokens=2000, firings=2000)).latest  # no neuron fires so often
    assert few["neurons/token_entropy_left_out/layer_00"] == 16
    assert math.isnan(few["neurons/token_entropy_median/layer_00"])
    assert math.isnan(few["neurons/unigram_entropy"])


def test_what_can_no_longer_be_measured_is_not_what_it_was(look, module):
    watched = module(topk={"k": 16}, vocab_size=300)
    assert look(Probe(tokens=1000, firings=300), watched).latest["neurons/token_entropy_median/layer_00"] > 0
    watched.model.set_k([1] * len(watched.model.sites))
    look(Probe(tokens=1000, firings=1000), watched)
    assert math.isnan(watched.latest["neurons/token_entropy_median/layer_00"])
    (row, *_) = layer_rows(watched.model, watched.latest)
    assert finite(row)["token_entropy"] is None


def test_sites_of_the_mlp_have_no_neighbour(look, module):
    row = look(Probe(firings=20), module(topk={"k": 3, "sites": ["mlp_neurons"]}, vocab_size=300)).latest
    assert "sparsity/overlap_tokens/layer_01_mlp_neurons" in row
    assert not [name for name in row if "overlap_layers" in name]


def test_training_does_not_notice(look, module):
    watched = module(topk={"k": 3}, vocab_size=300)
    watched.model.train()
    watched.model(torch.randint(0, 300, (2, 24)))  # so that counters are not zero
    state = {
        name: tensor.clone() for name, tensor in [*watched.model.named_buffers(), *watched.model.named_parameters()]
    }
    before = torch.get_rng_state()
    first = dict(look(Probe(firings=20), watched).latest)
    assert torch.equal(torch.get_rng_state(), before)
    assert watched.model.training
    for name, tensor in [*watched.model.named_buffers(), *watched.model.named_parameters()]:
        assert torch.equal(tensor, state[name]), name
    assert all(parameter.grad is None for parameter in watched.model.parameters())
    assert look(Probe(firings=20), watched).latest == first


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("enabled", 1),
        ("tokens", 0),
        ("tokens", "8k"),
        ("firings", 1),
        ("firings", 9000),
        ("topic", 3),
        ("shuffles", 0),
        ("seed", -1),
    ],
)
def test_impossible_settings(setting, value):
    with pytest.raises(ValueError, match=f"callbacks.probe.{setting}={value}: give "):
        Probe(**{setting: value})
