"""Nothing that is not finite goes on or into a checkpoint."""

from types import SimpleNamespace

import pytest
import torch

from topklm.callbacks import NonFinite, NonFiniteLoss


def bad(value):
    return torch.tensor(float(value))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(("name", "said"), [("loss", "loss"), ("grad_norm", "gradient norm")])
def test_a_step_that_is_not_finite(module, trainer, name, said, value):
    watched = module()
    watched.global_step = 7
    NonFinite(every_n_steps=10).on_train_batch_end(trainer(), watched)
    setattr(watched, name, bad(value))
    with pytest.raises(NonFiniteLoss, match=f"The {said} became {value} at step 7"):
        NonFinite(every_n_steps=10).on_train_batch_end(trainer(), watched)


def test_elsewhere_than_on_a_cpu_it_looks_now_and_then(module, trainer):
    watched, callback = module(), NonFinite(every_n_steps=5)
    watched.device = SimpleNamespace(type="cuda")
    watched.loss = bad("nan")
    for watched.global_step in (1, 4, 6):
        callback.on_train_batch_end(trainer(), watched)
    with pytest.raises(NonFiniteLoss):
        watched.global_step = 10
        callback.on_train_batch_end(trainer(), watched)
    stopping = trainer()
    stopping.should_stop = True
    watched.global_step = 11
    with pytest.raises(NonFiniteLoss):
        callback.on_train_batch_end(stopping, watched)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_checkpoint_of_weights_that_are_not_finite(module, trainer, device, value):
    """At any step, and though the loss before the update was fine."""
    watched, callback = module(), NonFinite(every_n_steps=1000)
    watched.device = SimpleNamespace(type=device)
    watched.global_step = 3
    callback.on_save_checkpoint(trainer(), watched, {})
    with torch.no_grad():
        watched.model.blocks[1].mlp.down.weight[2, 3] = bad(value)
    with pytest.raises(NonFiniteLoss, match="Weights became infinite or NaN at step 3"):
        callback.on_save_checkpoint(trainer(), watched, {})


@pytest.mark.parametrize("every", [0, -1, 0.5, True, None])
def test_never_looking(every):
    with pytest.raises(ValueError, match=f"callbacks.non_finite.every_n_steps={every}: give a whole number"):
        NonFinite(every_n_steps=every)
