"""Which weights write and read a neuron: found by what the model computes, and by its gradients."""

import pytest
import torch

from topklm.model.neurons import readers, writers

SITES = {
    "paper": {"k": 3},
    "all": {"k": 3, "sites": ["resid_post_attn", "mlp_neurons", "resid_post_mlp"], "n_nontopk": 0},
    "one": {"k": 3, "layers": [1], "sites": ["resid_post_attn", "mlp_neurons"]},
}


def seen_by_sites(model, ids):
    """What every site takes and gives."""
    seen = {}
    for site in model.sites:
        site.register_forward_hook(lambda site, x, y: seen.update({site: (x[0], y)}))
    model(ids)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("sites", SITES)
def test_writers_make_the_value_of_their_neuron(build, ids, sites):
    """Without them a neuron has what the residual site before let through, and nothing where there is none."""
    for position in range(len(build(SITES[sites]).sites)):
        model = build(SITES[sites])
        site = model.sites[position]
        for weights in writers(model, site):
            weights.rows(weights.parameter.data)[5] = 0.0
        seen = seen_by_sites(model, ids)
        before = [other for other in model.sites[:position] if other.name != "mlp_neurons"]
        left = seen[before[-1]][1][..., 5] if before and site.name != "mlp_neurons" else torch.zeros(ids.shape)
        assert torch.equal(seen[site][0][..., 5], left)
        assert ((seen[site][0] != 0).sum((0, 1)) > 0).sum() >= site.width - 1  # the others are written on


@pytest.mark.parametrize("sites", SITES)
def test_a_reader_learns_of_the_neurons_that_fire_and_of_no_others(build, ids, sites):
    model = build(SITES[sites])
    fired = {}
    for site in model.sites:
        site.register_forward_hook(
            lambda site, _, y: fired.update({site.label: (y.detach() != 0).flatten(0, -2).any(0)})
        )
    model.loss(ids[:1, :4], ids[:1, 1:5]).backward()
    for site in model.sites:
        fires = fired[site.label]
        assert 0 < fires.sum() < site.width
        matrices = readers(model, site)
        assert bool(matrices) or site.layer + 1 == model.config.n_layers
        for weights in matrices:
            assert torch.equal((weights.rows(weights.parameter.grad) != 0).any(1), fires)


def test_a_tied_embedding_is_left_alone(build):
    for tied in (False, True):
        model = build({"k": 3}, tied=tied)
        found = [weights.parameter for weights in writers(model, model.sites[0])]
        assert any(parameter is model.embed.weight for parameter in found) == (not tied)


def test_of_another_model(build):
    with pytest.raises(ValueError, match="layer_00 is not a site of this model"):
        writers(build({"k": 3}), build({"k": 3}).sites[0])
