"""Reviving by drawing weights anew: a silenced neuron comes back, and nothing else moves."""

import copy

import pytest
import torch

from tests.callbacks.conftest import silence, train
from topklm.callbacks import DeadNeurons, Revive, Sparsity
from topklm.callbacks.revive import fill
from topklm.model.neurons import NeuronWeights, readers, writers

WINDOW = 10 * 48  # tokens of ten steps
SETTINGS = {"every_n_steps": 20, "window_tokens": WINDOW}


def run(module, trainer, steps, **settings):
    """A run of 100 steps with a neuron silenced; whether it fired, step by step."""
    watched = module(topk={"k": 6})
    silence(watched, 5)
    callbacks = [Sparsity(), DeadNeurons(), Revive(**{**SETTINGS, **settings})]
    host = trainer(callbacks=callbacks)
    return watched, [bool(fired[5]) for fired in train(watched, host, callbacks, steps, start=True)]


def test_a_silenced_neuron_comes_back(module, trainer):
    watched, fired = run(module, trainer, 30)
    assert not any(fired[:20])
    assert any(fired[20:])
    assert dict(watched.rows)[20]["sparsity/revived/layer_00"] >= 1


def test_without_it_stays_silent(module, trainer):
    _, fired = run(module, trainer, 60, enabled=False)
    assert not any(fired)


def test_nothing_after_its_time(module, trainer):
    watched, fired = run(module, trainer, 60, until=0.1)
    assert not any(fired)
    assert not any("sparsity/revived/layer_00" in row for _, row in watched.rows)


def test_off_it_changes_nothing(module, trainer):
    off, _ = run(module, trainer, 25, enabled=False)
    bare = module(topk={"k": 6})
    silence(bare, 5)
    list(train(bare, trainer(), [Sparsity(), DeadNeurons()], 25, start=True))
    for ours, theirs in zip(off.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("sites", [["resid_post_mlp"], ["resid_post_attn", "mlp_neurons"]])
def test_only_the_weights_of_silent_neurons_move(module, trainer, sites):
    watched = module(topk={"k": 6, "sites": sites})
    callbacks = [Sparsity(), DeadNeurons(), Revive(every_n_steps=1, window_tokens=WINDOW, write_scale=2.0)]
    host = trainer(callbacks=callbacks)
    list(train(watched, host, callbacks, 3, start=True))
    site = watched.model.sites[0]
    for other in watched.model.sites:
        other.tokens_since_fired_d.zero_()
    site.tokens_since_fired_d[[2, 7]] = WINDOW
    silent = site.tokens_since_fired_d >= WINDOW
    before = copy.deepcopy(dict(watched.model.named_parameters()))
    names = {id(parameter): name for name, parameter in watched.model.named_parameters()}
    callbacks[-1].on_train_batch_end(host, watched)
    touched = set()
    for scale, matrices in ((2.0, writers(watched.model, site)), (0.0, readers(watched.model, site))):
        for weights in matrices:
            name = names[id(weights.parameter)]
            touched.add(name)
            old, new = (weights.rows(p) for p in (before[name].data, weights.parameter.data))
            assert torch.equal(old[~silent], new[~silent])
            length = old[~silent].norm(dim=1).mean() * scale
            torch.testing.assert_close(new[silent].norm(dim=1), length.expand(2))
            for moment in ("exp_avg", "exp_avg_sq"):
                kept = weights.rows(watched.optimizer.state[weights.parameter][moment])
                assert (kept[silent] == 0).all()
                assert (kept[~silent] != 0).any()
    for name, parameter in watched.model.named_parameters():
        assert name in touched or torch.equal(parameter, before[name])
    assert watched.row[f"sparsity/revived/{site.label}"] == 2


def test_a_continued_run_is_the_same_run(module, trainer):
    """Continued before the first neurons are revived, so that counters and draws matter."""
    straight, _ = run(module, trainer, 50)
    first, _ = run(module, trainer, 15)
    checkpoint = {}
    DeadNeurons().on_save_checkpoint(trainer(), first, checkpoint)
    callbacks = [Sparsity(), DeadNeurons(), Revive(**SETTINGS)]
    second = module(topk={"k": 6})
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer = torch.optim.AdamW(second.model.parameters(), lr=0.01, weight_decay=0.0)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.global_step = 15
    callbacks[1].on_load_checkpoint(trainer(), second, checkpoint)
    list(train(second, trainer(callbacks=callbacks), callbacks, 35, start=True))
    assert dict(second.rows)[20]["sparsity/revived/layer_00"] >= 1
    for ours, theirs in zip(second.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_where_all_are_silent_their_own_length_counts():
    weights = NeuronWeights(torch.nn.Parameter(torch.eye(4) * 3), False, 0, 4)
    fill(weights, torch.ones(4, dtype=torch.bool), 1.5, torch.Generator())
    torch.testing.assert_close(weights.parameter.norm(dim=1), torch.full((4,), 4.5))


@pytest.mark.parametrize(
    "wrong",
    [{"enabled": 1}, {"every_n_steps": 0}, {"window_tokens": 0}, {"write_scale": -1}, {"read_scale": "a"},
     {"until": 1.1}, {"seed": -1}],
)  # fmt: skip
def test_a_setting_that_will_not_do(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"callbacks.revive.{name}="):
        Revive(**wrong)
