"""Looking at sites' outputs, in compiled blocks too."""

import pytest
import torch

from topklm.model import ModelConfig, TopKConfig, TopKTransformer, capture
from topklm.training.hardware import compile_obstacle


def model(**topk):
    torch.manual_seed(0)
    return TopKTransformer(
        ModelConfig(vocab_size=97, d_model=16, n_layers=3, n_heads=2, seq_len=24, topk=TopKConfig(k=3, **topk))
    )


IDS = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(0))


def test_outputs_of_each_pass():
    one = model()
    with capture(one) as seen, torch.no_grad():
        assert seen == {}
        one(IDS)
        assert {label: y.shape for label, y in seen.items()} == {"layer_00": (2, 24, 16), "layer_01": (2, 24, 16)}
        assert all(((y != 0).sum(-1) == 3).all() for y in seen.values())
        # The last site's output is what the last block reads.
        rest = one.norm_out(one.blocks[2](seen["layer_01"], one.rotary(0, 24)))
        torch.testing.assert_close(one.logits(rest), one(IDS))
    before = dict(seen)
    one(IDS[:, :5])
    assert seen["layer_00"] is before["layer_00"]  # outside it looks no more


def test_hooks_go_when_it_fails():
    one = model()
    with pytest.raises(ZeroDivisionError), capture(one):
        raise ZeroDivisionError
    assert not any(site._forward_hooks for site in one.sites)


def test_a_dense_twin():
    one = model(sites=[])
    with capture(one) as seen:
        one(IDS)
    assert seen == {}


@pytest.mark.skipif(compile_obstacle("cpu") is not None, reason="torch.compile cannot work here")
def test_compiled_blocks():
    """Hooks that come after a compilation are seen, and what was compiled stays."""
    torch.compiler.reset()  # of other tests in this process: Dynamo counts compilations by function
    one = model()
    with torch.no_grad():
        with capture(one) as seen:
            one(IDS)
        expected = dict(seen)
        compiled = []

        def backend(graph, inputs):
            compiled.append(graph)
            return graph.forward

        for block in one.blocks:
            block.compile(backend=backend)
        one(IDS)
        count = len(compiled)
        assert count > 0
        with capture(one) as seen:
            one(IDS)
        for label, y in expected.items():
            assert torch.equal(seen[label], y)
        one(IDS)
        assert len(compiled) == count
