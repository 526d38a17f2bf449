"""A signal lets the step at hand end; a second one is none of our business."""

import os
import signal
import threading

import pytest

from topklm.callbacks import Interrupt


@pytest.fixture(autouse=True)
def handlers():
    """Puts the handlers back, whatever a test leaves; SIGTERM raises Terminated meanwhile."""

    class Terminated(Exception):
        pass

    def raise_(number, frame):
        raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, raise_)
    yield Terminated
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_run_stops_after_the_step(module, trainer, number):
    watched, stand_in, callback = module(), trainer(), Interrupt()
    callback.on_train_start(stand_in, watched)
    watched.global_step = 3
    callback.on_train_batch_end(stand_in, watched)
    assert (stand_in.should_stop, callback.received) == (False, None)
    os.kill(os.getpid(), number)
    assert callback.received == number
    assert not stand_in.should_stop  # the step is still at work
    callback.on_train_batch_end(stand_in, watched)
    assert stand_in.should_stop
    assert stand_in.limit_val_batches == 0


def test_a_validation_that_is_due_is_still_done(module, trainer):
    watched, stand_in, callback = module(), trainer(), Interrupt()
    callback.on_train_start(stand_in, watched)
    os.kill(os.getpid(), signal.SIGINT)
    watched.global_step = 10  # the stand-in validates every 10 steps
    callback.on_train_batch_end(stand_in, watched)
    assert stand_in.should_stop
    assert stand_in.limit_val_batches == 1.0


def test_after_the_last_step_the_run_ends_as_it_would(module, trainer):
    watched, stand_in, callback = module(steps=11), trainer(), Interrupt()
    callback.on_train_start(stand_in, watched)
    os.kill(os.getpid(), signal.SIGINT)
    watched.global_step = 11
    callback.on_train_batch_end(stand_in, watched)
    assert (stand_in.should_stop, stand_in.limit_val_batches) == (False, 1.0)


def test_a_second_signal_has_its_ordinary_effect(module, trainer, handlers):
    callback = Interrupt()
    callback.on_train_start(trainer(), module())
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(handlers):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_afterwards_signals_are_as_before(module, trainer, end):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    callback = Interrupt()
    callback.on_train_start(trainer(), module())
    assert signal.getsignal(signal.SIGINT) != before[0]
    getattr(callback, end)(trainer(), module(), *([ValueError()] if end == "on_exception" else []))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_all_ranks_stop_when_one_was_told(module, trainer):
    watched, stand_in, callback = module(), trainer(2), Interrupt()
    asked = []
    stand_in.strategy.reduce_boolean_decision = lambda decision, all: asked.append((decision, all)) or True
    callback.on_train_batch_end(stand_in, watched)
    assert asked == [(False, False)]  # this rank was told nothing, and any rank is enough
    assert stand_in.should_stop


def test_ranks_ask_each_other_at_logged_steps_alone(module, trainer):
    watched, stand_in, callback = module(log_every=5), trainer(2), Interrupt()
    asked = []
    stand_in.strategy.reduce_boolean_decision = lambda decision, all: asked.append(decision) or decision
    callback.received = signal.SIGTERM
    for step in (1, 4):
        watched.global_step = step
        callback.on_train_batch_end(stand_in, watched)
    assert asked == []
    assert not stand_in.should_stop
    watched.global_step = 5
    callback.on_train_batch_end(stand_in, watched)
    assert asked == [True]
    assert stand_in.should_stop


def test_in_another_thread_it_leaves_signals_alone(module, trainer):
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=Interrupt().on_train_start, args=(trainer(), module()))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) == before
