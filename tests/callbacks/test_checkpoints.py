"""Which checkpoints are written, when, and after what."""

import pytest

from topklm.callbacks import Checkpoints


def play(module, trainer, callback, steps, eval_every=10, stop_at=None):
    """The (step, file name) of all that a run saves, and whether its row had been logged by then."""
    saved, stand_in = [], trainer()
    stand_in.val_check_interval = eval_every
    stand_in.save_checkpoint = lambda path: saved.append((module.global_step, path.name, module.row == {}))
    for step in range(1, steps + 1):
        module.global_step = step
        module.add_metrics({"train/loss": 1.0})
        stand_in.should_stop = step == stop_at
        callback.on_train_batch_end(stand_in, module)
        if step % eval_every == 0:
            module.add_metrics({"val/loss": 1.0})
            callback.on_validation_end(stand_in, module)
        module.log_row()
        if step == stop_at:
            break
    assert all(logged for *_, logged in saved)
    return [(step, name) for step, name, _ in saved]


@pytest.mark.parametrize(
    ("steps", "keep", "kept"),
    [
        (100, 5, [20, 40, 60, 80, 100]),
        (12, 5, [2, 5, 7, 10, 12]),
        (3, 5, [1, 2, 3]),  # fewer steps than there are to keep: some fall together, none on step 0
        (10, 1, [10]),
        (10, 0, []),
    ],
)
def test_the_kept_ones_are_spread_over_the_run(module, trainer, steps, keep, kept):
    saved = play(module(steps=steps), trainer, Checkpoints(every_n_steps=1000, keep=keep), steps)
    assert [step for step, name in saved if name != "last.ckpt"] == kept
    assert [name for _, name in saved if name != "last.ckpt"] == [f"step_{step:07d}.ckpt" for step in kept]
    assert [step for step, name in saved if name == "last.ckpt"] == [steps]


def test_the_last_one_is_written_often_and_when_told_to_stop(module, trainer):
    saved = play(module(steps=50), trainer, Checkpoints(every_n_steps=15, keep=0), 50)
    assert [step for step, _ in saved] == [15, 30, 45, 50]
    saved = play(module(steps=50), trainer, Checkpoints(every_n_steps=15, keep=0), 50, stop_at=33)
    assert [step for step, _ in saved] == [15, 30, 33]


def test_a_step_with_a_validation_is_saved_after_it_and_once(module, trainer):
    watched = module(steps=20)
    saved = play(watched, trainer, Checkpoints(every_n_steps=5, keep=2), 20)
    assert saved == [
        (5, "last.ckpt"),
        *[(10, "step_0000010.ckpt"), (10, "last.ckpt")],
        (15, "last.ckpt"),
        *[(20, "step_0000020.ckpt"), (20, "last.ckpt")],
    ]


def test_validation_outside_of_training_saves_nothing(module, trainer):
    stand_in = trainer()
    stand_in.state.fn = "validate"
    stand_in.save_checkpoint = lambda path: pytest.fail("saved")
    watched = module(steps=10)
    watched.global_step = 10
    Checkpoints().on_validation_end(stand_in, watched)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("every_n_steps", 0), ("every_n_steps", 1.5), ("every_n_steps", True), ("keep", -1), ("keep", "5")],
)
def test_impossible_settings(setting, value):
    with pytest.raises(ValueError, match=f"callbacks.checkpoints.{setting}={value}: give a whole number"):
        Checkpoints(**{setting: value})
