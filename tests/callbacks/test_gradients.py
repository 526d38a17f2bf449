"""Norms of gradients by block, beside the gradient of the whole batch."""

import pytest
import torch

from topklm.callbacks import GradientNorms


def backward(watched, ids, parts, callback, trainer):
    """The backward passes of a step in micro-batches."""
    for micro in ids.split(len(ids) // parts):
        (watched.model.loss(micro[:, :-1], micro[:, 1:]) / parts).backward()
    callback.on_before_optimizer_step(trainer, watched)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_the_norm_is_that_of_the_whole_step(module, trainer, parts, tied):
    ids = torch.randint(0, 97, (4, 25), generator=torch.Generator().manual_seed(0))
    watched, callback = module(tied=tied), GradientNorms()
    backward(watched, ids, parts, callback, trainer())
    torch.nn.utils.clip_grad_norm_(watched.model.parameters(), 1e-3)  # it was looked at before
    watched.model.zero_grad()
    watched.global_step = 1
    callback.on_train_batch_end(trainer(), watched)

    expected = module(tied=tied).model
    expected.loss(ids[:, :-1], ids[:, 1:]).backward()
    places = {f"layer_{i:02d}": f"blocks.{i}." for i in range(3)} | {"embedding": "embed."}
    places |= {} if tied else {"head": "head."}
    assert set(watched.row) == {f"train/grad_norm/{name}" for name in places}
    squares = 0.0
    for name, start in places.items():
        parts_of = [p.grad.flatten() for n, p in expected.named_parameters() if n.startswith(start)]
        norm = torch.cat(parts_of).norm().item()
        assert watched.row[f"train/grad_norm/{name}"] == pytest.approx(norm, rel=1e-4)
        squares += norm**2
    whole = torch.nn.utils.get_total_norm([p.grad for p in expected.parameters()]).item()
    (gain,) = expected.norm_out.parameters()
    assert squares + gain.grad.norm().item() ** 2 == pytest.approx(whole**2, rel=1e-4)


def test_in_logged_steps_only(module, trainer):
    watched, callback = module(log_every=2, steps=5), GradientNorms()
    ids = torch.randint(0, 97, (2, 25))
    for step in range(1, 6):
        backward(watched, ids, 1, callback, trainer())
        watched.global_step = step
        callback.on_train_batch_end(trainer(), watched)
        watched.log_row()
    assert [step for step, _ in watched.rows] == [2, 4, 5]


def test_off(module, trainer):
    watched, callback = module(), GradientNorms(enabled=False)
    backward(watched, torch.randint(0, 97, (2, 25)), 1, callback, trainer())
    callback.on_train_batch_end(trainer(), watched)
    assert watched.row == {}
    with pytest.raises(ValueError, match="callbacks.gradients.enabled=no: give true or false"):
        GradientNorms(enabled="no")
