"""What a person reads while a run goes on."""

import io
import re

import pytest
from rich.console import Console

from topklm.callbacks import ProgressBar, progress
from topklm.callbacks.progress import status


@pytest.fixture
def screen(monkeypatch):
    """screen(terminal=False): a progress bar, and what it printed so far."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)

    def make(terminal=False):
        callback, text = ProgressBar(), io.StringIO()
        callback.console = Console(file=text, force_terminal=terminal, width=120)
        return callback, text.getvalue

    return make


def test_the_status_says_what_is_known(module):
    watched = module()
    assert status(watched) == "k 3"
    watched.latest = {"train/loss": 5.5, "throughput/tokens_per_second": 98765.4}
    watched.row = {"train/loss": 4.25}
    assert status(watched) == "loss 4.250  k 3  98,765 tokens/s"
    watched.model.set_k([12, 3])
    assert "k 3-12" in status(watched)
    assert status(module(topk={"sites": ()})) == "dense"


@pytest.mark.parametrize("k", [[1, 2, 3], [5, 5, 9]])
def test_a_range_of_k(module, k):
    watched = module(topk={"k": k, "n_nontopk": 0})
    assert status(watched) == f"k {min(k)}-{max(k)}"


def test_without_a_terminal_there_are_lines(module, trainer, screen):
    callback, printed = screen()
    watched = module(steps=4, log_every=2)
    callback.on_train_start(trainer(), watched)
    for step in (1, 2, 3, 4):
        watched.global_step = step
        watched.row = {"train/loss": 10.0 - step}
        callback.on_train_batch_end(trainer(), watched)
    callback.on_train_end(trainer(), watched)
    assert printed().splitlines() == ["step 2/4  loss 8.000  k 3", "step 4/4  loss 6.000  k 3"]


def test_lines_keep_a_distance_but_the_last_step_is_told(module, trainer, screen, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 1e9)
    callback, printed = screen()
    watched = module(steps=3)
    for watched.global_step in (1, 2, 3):
        callback.on_train_batch_end(trainer(), watched)
    assert printed().splitlines() == ["step 3/3  k 3"]


def test_a_terminal_gets_a_bar(module, trainer, screen):
    callback, printed = screen(terminal=True)
    watched = module(steps=4)
    callback.on_train_start(trainer(), watched)
    watched.global_step, watched.row = 3, {"train/loss": 2.5}
    callback.on_train_batch_end(trainer(), watched)
    callback.on_exception(trainer(), watched, ValueError())
    assert callback.bar is None
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", printed())
    assert "3/4" in text
    assert "loss 2.500" in text


def test_a_validation_is_told_with_both_losses_where_they_differ(module, trainer, screen):
    callback, printed = screen()
    watched = module()
    watched.global_step = 5
    watched.latest = {"val/loss": 3.25, "val/bpb": 1.5, "val/loss_final_k": 3.5}
    callback.on_validation_end(trainer(), watched)
    watched.latest["val/loss_final_k"] = 3.25
    callback.on_validation_end(trainer(), watched)
    line = "step 5: validation loss 3.2500 nats/token, 1.5000 bits/byte"
    assert printed().splitlines() == [f"{line} (3.5000 nats/token at the final k)", line]


def test_other_ranks_are_silent(module, trainer, screen):
    callback, printed = screen()
    watched, other = module(steps=1), trainer(2, global_rank=1)
    watched.global_step = 1
    callback.on_train_start(other, watched)
    callback.on_train_batch_end(other, watched)
    callback.on_validation_end(other, watched)
    assert printed() == ""
