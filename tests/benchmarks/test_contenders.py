"""Contenders are of one shape, and each takes real steps."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F

from topklm.benchmarks import contenders
from topklm.benchmarks.contenders import LITGPT, LLAMA, Bench, Missing
from topklm.model import ModelConfig, TopKTransformer, count_parameters


def there(package):
    try:  # litgpt may be there without what it imports
        importlib.import_module({"transformers": "transformers", "litgpt": "litgpt.model"}[package])
    except ImportError:
        return False
    return True


PEERS = [
    pytest.param(peer, marks=pytest.mark.skipif(not there(package), reason=f"{package} is not there"))
    for package, peer in (("transformers", contenders.llama), ("litgpt", contenders.litgpt))
]


@pytest.mark.parametrize("make", PEERS)
@pytest.mark.parametrize("changes", [{}, {"tied": True, "n_kv_heads": 2, "d_ff": 72}])
def test_a_peer_has_our_parameters_without_the_gains_of_qk_norm(make, changes):
    shape = {"vocab_size": 97, "d_model": 32, "n_layers": 3, "n_heads": 4, "seq_len": 16, **changes}
    peer, loss = make(ModelConfig(**shape))
    theirs = sum(p.numel() for p in peer.parameters())
    for qk_norm in (True, False):
        ours = count_parameters(TopKTransformer(contenders.dense_twin(ModelConfig(**shape, qk_norm=qk_norm))))
        assert ours - theirs == (3 * 2 * 8 if qk_norm else 0)
    ids = torch.randint(0, 97, (10, 17), generator=torch.Generator().manual_seed(0))
    logits = peer(ids[:, :-1])
    expected = F.cross_entropy(getattr(logits, "logits", logits).flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss(peer, ids[:, :-1], ids[:, 1:]), expected)


@pytest.mark.parametrize(("name", "package"), [(LLAMA, "transformers"), (LITGPT, "litgpt")])
def test_an_absent_peer_is_said(config, monkeypatch, name, package):
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Missing, match=rf"^{name} is left out.*pip install .*{'litgpt' if name == LITGPT else 'bench'}"):
        Bench.of(config()).peer(name)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_steps_train(config, monkeypatch, precision):
    made = []
    monkeypatch.setattr(Bench, "stepper", lambda self, model, *parts: made.append((model, *parts)))
    run = config("training.micro_batch_tokens=32")
    bench = Bench(run, run.model_config(97), "cpu", precision, run.optimizer, steps=3)
    bench.ours(telemetry=True)
    monkeypatch.undo()
    ((model, loss, optimizer, telemetry),) = made
    losses = []

    def watched(*args):
        losses.append(loss(*args))
        return losses[-1]

    bench.stepper(model, watched, optimizer, telemetry)()
    assert len(losses) == 3 * 2  # micro-batches
    assert losses[-1] < losses[1]  # on the same tokens
    assert telemetry.taken == 3
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16 if precision == "bf16-true" else torch.float32}


def test_twins(config, monkeypatch):
    made = []
    monkeypatch.setattr(Bench, "stepper", lambda self, model, *parts: made.append(model))
    bench = Bench.of(config())
    for options in ({}, {"telemetry": True}, {"topk": False}):
        bench.ours(**options)
    assert [[site.record for site in model.sites] for model in made] == [[False], [True], []]
    assert len({count_parameters(model) for model in made}) == 1
