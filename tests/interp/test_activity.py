"""What fires on a sample, beside the sites' own outputs; and that looking leaves no trace."""

import pytest
import torch

from topklm.interp import TokenSample, activity, effective_rank, observe
from topklm.model import ModelConfig, TopKConfig, TopKTransformer, document_numbers


@pytest.fixture
def model():
    def make(**topk):
        torch.manual_seed(0)
        config = TopKConfig(**{"k": 3, "sites": ["mlp_neurons", "resid_post_mlp"], **topk})
        return TopKTransformer(ModelConfig(vocab_size=97, d_model=16, n_layers=3, n_heads=2, seq_len=24, topk=config))

    return make


@pytest.fixture
def sample():
    ids = torch.randint(0, 97, (5, 24), generator=torch.Generator().manual_seed(1))
    return TokenSample(ids, (torch.arange(120) // 20).view(5, 24), torch.arange(6), tuple("abcdef"))


def outputs(model, ids, documents=None):
    found = {}
    hooks = [s.register_forward_hook(lambda s, _, y: found.__setitem__(s.label, y.detach())) for s in model.sites]
    model.eval()
    model(ids, documents_bt=documents)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("eot", [None, 3])
@pytest.mark.parametrize("at_once", [24, 50, 10_000])
def test_beside_the_sites_outputs(model, sample, eot, at_once, monkeypatch):
    monkeypatch.setattr(activity, "PASS_TOKENS", at_once)
    one = model()
    expected = outputs(one, sample.ids_wt, None if eot is None else document_numbers(sample.ids_wt, eot))
    found = observe(one, sample, eot)
    assert list(found) == [site.label for site in one.sites]
    for label, one_site in found.items():
        y = expected[label]
        assert torch.equal(one_site.fired_wtd, y != 0)
        assert torch.equal(one_site.fired_nd, (y != 0).flatten(0, 1))
        covariance = torch.cov(y.flatten(0, 1).T.double(), correction=0)
        assert effective_rank(one_site.moments.covariance()) == pytest.approx(effective_rank(covariance), rel=1e-4)
        by_document = one_site.fired_by_document(sample.document_wt, 6)
        for number in range(6):
            assert by_document[number].tolist() == (y != 0)[sample.document_wt == number].sum(0).tolist()


@pytest.mark.parametrize("training", [True, False])
def test_it_leaves_no_trace(model, sample, training):
    one = model().train(training)
    state = {name: buffer.clone() for name, buffer in one.named_buffers()}
    before = torch.get_rng_state()
    observe(one, sample)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training is training for module in one.modules())
    assert not any(site._forward_hooks for site in one.sites)
    for name, buffer in one.named_buffers():
        assert torch.equal(buffer, state[name]), name


def test_a_dense_twin_has_nothing_to_show(model, sample):
    assert observe(model(sites=[]), sample) == {}
