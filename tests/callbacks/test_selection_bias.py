"""The selection bias: a silenced neuron comes back by it, it fades, and evaluation knows nothing of it."""

import pytest
import torch

from tests.callbacks.conftest import silence, train
from topklm.callbacks import DeadNeurons, SelectionBias, Sparsity

WINDOW = 10 * 48  # tokens of ten steps
SETTINGS = {"every_n_steps": 2, "window_tokens": WINDOW, "rate": 1.0, "decay": 0.5}


def parts(**settings):
    return [Sparsity(), DeadNeurons(), SelectionBias(**{**SETTINGS, **settings})]


def run(module, trainer, steps, **settings):
    """A run of 100 steps with a neuron silenced; whether it fired, step by step."""
    watched = module(topk={"k": 6})
    silence(watched, 5)
    callbacks = parts(**settings)
    host = trainer(callbacks=callbacks)
    return watched, callbacks[-1], [bool(f[5]) for f in train(watched, host, callbacks, steps, start=True)]


def test_a_silenced_neuron_comes_back(module, trainer):
    watched, _, fired = run(module, trainer, 60)
    assert not any(fired[:10])
    assert any(fired[10:])
    assert max(row["sparsity/bias/layer_00"] for _, row in watched.rows) > 1


def test_it_does_not_wait_for_a_logged_row(module, trainer):
    watched, callbacks = module(topk={"k": 6}, log_every=1000), parts()
    silence(watched, 5)
    fired = [bool(f[5]) for f in train(watched, trainer(callbacks=callbacks), callbacks, 60, start=True)]
    assert not watched.rows
    assert any(fired)


def test_without_it_stays_silent(module, trainer):
    watched, _, fired = run(module, trainer, 60, enabled=False)
    assert not any(fired)
    assert not any("sparsity/bias/layer_00" in row for _, row in watched.rows)


def test_it_grows_by_thresholds_while_silent_and_shrinks_otherwise(module, trainer):
    watched, (callback,) = module(), [SelectionBias(**SETTINGS)]
    host = trainer(callbacks=[DeadNeurons()])
    callback.on_train_start(host, watched)
    site = watched.model.sites[0]
    watched.latest = {"sparsity/threshold/layer_00": 0.5, "sparsity/threshold/layer_01": -3.0}
    for step, since, expected in (
        (1, WINDOW, 0.0),  # no multiple of two
        (2, WINDOW, 0.5),
        (4, WINDOW, 1.0),
        (6, WINDOW - 1, 0.5),
        (8, 0, 0.25),
    ):
        watched.global_step = step
        for each in watched.model.sites:
            each.tokens_since_fired_d[3] = since
        callback.on_train_batch_start(host, watched)
        assert site.bias_d.tolist() == [0.0] * 3 + [expected] + [0.0] * 12
        assert watched.model.sites[1].bias_d.tolist() == [0.0] * 3 + [6 * expected] + [0.0] * 12  # of its size


def test_it_fades_to_exactly_nothing(module, trainer):
    callback = SelectionBias(fade_from=0.6, until=0.8)
    assert [callback.fading(p) for p in (0.0, 0.6, 0.8, 1.0)] == [1.0, 1.0, 0.0, 0.0]
    assert callback.fading(0.7) == pytest.approx(0.5)
    assert SelectionBias(fade_from=0.5, until=0.5).fading(0.49) == 1.0
    watched, _, _ = run(module, trainer, 100, fade_from=0.3, until=0.5)
    bias = {step: row["sparsity/bias/layer_00"] for step, row in watched.rows}
    assert bias[30] > 0
    assert all(bias[step] == 0 for step in range(50, 101))  # step 50 of 100 is at progress 0.5
    assert not any("bias" in name for name in watched.model.state_dict())


def test_evaluation_knows_no_bias(module, trainer):
    watched, _, _ = run(module, trainer, 40)
    model, ids = watched.model, torch.randint(0, 97, (1, 24))
    assert model.sites[0].bias_d.max() > 0
    with torch.no_grad():
        plain = model.eval()(ids)
        for site in model.sites:
            site.bias_d.fill_(7.0).mul_(torch.arange(site.width))
        assert torch.equal(model(ids), plain)
        assert not torch.equal(model.train()(ids), plain)


def test_the_bias_of_a_step_depends_on_no_other_token(module, trainer):
    watched, _, _ = run(module, trainer, 40)
    model, ids = watched.model.train(), torch.randint(0, 97, (1, 24))
    with torch.no_grad():
        whole, beginning = model(ids), model(ids[:, :10])
    torch.testing.assert_close(whole[:, :10], beginning, rtol=1e-4, atol=1e-4)


def test_off_it_changes_nothing(module, trainer):
    off, _, _ = run(module, trainer, 25, enabled=False)
    assert not any(site.biased for site in off.model.sites)
    bare = module(topk={"k": 6})
    silence(bare, 5)
    list(train(bare, trainer(), [Sparsity(), DeadNeurons()], 25, start=True))
    for ours, theirs in zip(off.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_continued_run_is_the_same_run(module, trainer):
    straight, _, _ = run(module, trainer, 50)
    first, callback, _ = run(module, trainer, 31)
    checkpoint = {}
    for each in (DeadNeurons(), callback):
        each.on_save_checkpoint(trainer(), first, checkpoint)
    second, callbacks = module(topk={"k": 6}), parts()
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer = torch.optim.AdamW(second.model.parameters(), lr=0.01, weight_decay=0.0)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.global_step, second.latest = 31, dict(first.latest)
    for each in callbacks:
        each.on_load_checkpoint(trainer(), second, checkpoint)
    list(train(second, trainer(callbacks=callbacks), callbacks, 19, start=True))
    for ours, theirs in zip(second.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(second.model.sites[0].bias_d, straight.model.sites[0].bias_d)


def test_ranks_agree(module, trainer):
    """A neuron that fires on the other rank is not silent, and two ranks count half the tokens each."""
    watched, callback = module(topk={"layers": [0]}), SelectionBias(**SETTINGS)
    other = torch.tensor([WINDOW] * 8 + [0] * 8)
    host = trainer(2, reduce=lambda t, op: torch.minimum(t, other) if op == "min" else 2 * t, callbacks=[DeadNeurons()])
    callback.on_train_start(host, watched)
    watched.global_step, watched.latest = 2, {"sparsity/threshold/layer_00": 1.0}
    watched.model.sites[0].tokens_since_fired_d.copy_(torch.tensor([WINDOW // 2] * 4 + [10] * 4 + [WINDOW] * 8))
    callback.on_train_batch_start(host, watched)
    assert watched.model.sites[0].bias_d.tolist() == [1.0] * 4 + [0.0] * 12


@pytest.mark.parametrize(
    "wrong",
    [{"enabled": "yes"}, {"every_n_steps": 0.5}, {"window_tokens": -1}, {"rate": -0.1}, {"decay": 1.5},
     {"until": 2}, {"fade_from": 0.9}],
)  # fmt: skip
def test_a_setting_that_will_not_do(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"callbacks.selection_bias.{name}="):
        SelectionBias(**wrong)
