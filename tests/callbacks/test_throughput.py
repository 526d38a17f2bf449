"""Speed, by a clock that the test sets."""

import pytest

from topklm.callbacks import Throughput, throughput
from topklm.model import count_flops


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still: clock.now = ... sets it."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


class Run:
    """Plays a run to a callback, in the order of Lightning's hooks."""

    def __init__(self, module, trainer, clock, callback):
        self.module, self.trainer, self.clock, self.callback = module, trainer, clock, callback
        callback.on_train_start(trainer, module)

    def step(self, seconds=1.0, wait=0.0):
        self.clock.now += wait
        self.trainer.train_dataloader.wait_seconds += wait
        self.callback.on_train_batch_start(self.trainer, self.module)
        self.clock.now += seconds
        self.module.global_step += 1
        self.callback.on_train_batch_end(self.trainer, self.module)
        self.module.log_row()

    def validate(self, seconds):
        self.callback.on_validation_start(self.trainer, self.module)
        self.clock.now += seconds  # validation, samples, summary

    def save(self, seconds):
        checkpoint = {}
        self.callback.on_save_checkpoint(self.trainer, self.module, checkpoint)
        self.clock.now += seconds
        return checkpoint


@pytest.fixture
def run(module, trainer, clock):
    def make(callback=None, **options):
        return Run(
            module(**{"tokens_per_step": 100, "log_every": 5, **options}), trainer(), clock, callback or Throughput()
        )

    return make


def rates(run):
    return [(step, row["throughput/tokens_per_second"]) for step, row in run.module.rows]


def test_the_first_steps_do_not_count(run):
    played = run()
    for _ in range(5):
        played.step(seconds=1000)
    assert rates(played) == []
    assert played.callback.tokens_per_second is None
    for seconds in (1, 1, 1, 1, 1, 3, 3, 3, 3, 3):
        played.step(seconds)
    assert rates(played) == [(10, 100), (15, pytest.approx(100 / 3))]
    assert played.callback.tokens_per_second == 50  # 1000 tokens in 20 s


def test_waiting_for_data_counts(run):
    played = run()
    for _ in range(10):
        played.step(seconds=1, wait=3)
    assert rates(played) == [(10, 25)]
    assert played.module.latest["throughput/data_wait_percent"] == 75


@pytest.mark.parametrize("what", ["validate", "save", "both"])
def test_validation_and_checkpoints_do_not_count_but_the_wait_after_them_does(run, what):
    played = run()
    for step in range(1, 16):
        played.step(seconds=1, wait=3)
        played.clock.now += 0.5  # other callbacks
        if step % 3 == 0:
            if what != "save":
                played.validate(seconds=70)
            if what != "validate":
                played.save(seconds=20)
                played.save(seconds=20)
    # Steps 6 to 10: what follows step 5 counts, what follows step 10 belongs to the next row.
    assert rates(played) == [(10, pytest.approx(500 / (5 * 4.5))), (15, pytest.approx(500 / (5 * 4.5)))]
    assert played.module.latest["throughput/data_wait_percent"] == pytest.approx(100 * 15 / 22.5)
    # To the last save: step 15 is one of those after which the clock stops, so that what follows it counts too.
    assert played.callback.tokens_per_second == pytest.approx(1000 / (10 * 4.5 + 0.5))


def test_means_are_over_the_run_also_after_a_resume(run):
    first = run()
    for _ in range(8):
        first.step(seconds=2)
    checkpoint = first.save(seconds=9)
    second = Throughput()
    second.on_load_checkpoint(first.trainer, first.module, checkpoint)
    assert second.tokens_per_second == 50
    first.clock.now += 1000
    second = run(second)
    for seconds in (500, 500, 500, 500, 500, 1, 1, 1):
        second.step(seconds)
    assert second.callback.tokens_per_second == pytest.approx(600 / 9)  # 3 steps of 2 s, 3 of 1 s


def test_mfu_is_the_share_of_the_peak(run):
    played = run(Throughput(peak_flops=1e9))
    for _ in range(12):
        played.step(seconds=1)
    expected = 100 * count_flops(played.module.model.config).training / 1e9
    assert played.module.latest["throughput/mfu"] == pytest.approx(expected)
    assert played.callback.mfu == pytest.approx(expected)
    assert run(Throughput(peak_flops=None)).callback.mfu is None


def test_validation_outside_of_training_is_nothing_to_it(module, trainer, clock):
    stand_in, callback = trainer(), Throughput()
    stand_in.state.fn = "validate"
    stand_in.train_dataloader = None
    callback.on_validation_start(stand_in, module())
    callback.on_save_checkpoint(stand_in, module(), {})
