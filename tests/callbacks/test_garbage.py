"""The collector is quiet in training, works at validations, and is afterwards as it was."""

import gc
import weakref

import pytest

from topklm.callbacks import Garbage


@pytest.fixture(autouse=True)
def _collector():
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.enable()


class Cycle:
    def __init__(self):
        self.me = self


@pytest.mark.parametrize("end", ["on_train_end", "on_exception"])
def test_full_collections_wait_for_validation(module, trainer, end):
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    callback, arguments = Garbage(), (trainer(), module())
    old = Cycle()  # there before the first step, and none of the collector's business until the end
    old_alive = weakref.ref(old)
    callback.on_validation_end(*arguments)  # before the first step there is nothing to do
    assert gc.get_threshold() == before
    callback.on_train_batch_end(*arguments)
    assert gc.get_freeze_count() > frozen
    assert gc.get_threshold()[:2] == before[:2]
    assert gc.get_threshold()[2] > 10**6
    callback.on_train_batch_end(*arguments)
    new = Cycle()
    new_alive = weakref.ref(new)
    del old, new
    callback.on_validation_end(*arguments)
    assert new_alive() is None
    assert old_alive() is not None
    getattr(callback, end)(*arguments, *([ValueError()] if end == "on_exception" else []))
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old_alive() is None


def test_a_collector_that_is_off_stays_off(module, trainer):
    gc.disable()
    Garbage().on_train_batch_end(trainer(), module())
    assert not gc.isenabled()
    assert gc.get_freeze_count() == 0
