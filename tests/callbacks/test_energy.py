"""Energy and power, from a management library and a clock that the test sets."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from topklm.callbacks import Energy, energy


class NVML:
    """As much of pynvml as is used. ``watts`` is drawn from now on; ``counts``: the GPU counts its energy."""

    class NVMLError(Exception):
        pass

    def __init__(self, counts=True):
        self.now, self.watts, self.millijoules, self.counts, self.lost = 100.0, 0.0, 5e9, counts, False

    def pass_time(self, seconds):
        self.now += seconds
        self.millijoules += 1e3 * seconds * self.watts

    def monotonic(self):
        return self.now

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-12ab"
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if self.lost or not self.counts:
            raise self.NVMLError("Not Supported")
        return round(self.millijoules)

    def nvmlDeviceGetPowerUsage(self, handle):
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return round(1e3 * self.watts)


@pytest.fixture
def nvml(monkeypatch):
    def make(**options):
        made = NVML(**options)
        monkeypatch.setitem(sys.modules, "pynvml", made)
        monkeypatch.setattr(energy, "time", made)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12ab"))
        return made

    return make


@pytest.fixture
def run(module, trainer):
    """run(callback, device): starts it; steps are the test's."""

    def make(callback, device="cuda", **options):
        watched, stand_in = module(log_every=2), trainer(**options)
        watched.device = torch.device(device)

        def step():
            watched.global_step += 1
            callback.on_train_batch_end(stand_in, watched)
            watched.log_row()

        callback.on_train_start(stand_in, watched)
        return SimpleNamespace(module=watched, trainer=stand_in, callback=callback, step=step)

    return make


@pytest.mark.parametrize("counts", [True, False])
def test_power_and_energy(nvml, run, counts):
    """100 W for 4 s, then 300 W for 6 s; sampled, the power seems to rise in a line from 100 to 300 W over the 6 s."""
    gpu = nvml(counts=counts)
    gpu.watts = 100.0
    played = run(Energy())
    for watts in (100.0, 300.0):
        gpu.watts = watts if counts else gpu.watts
        for seconds in (2, 2) if watts == 100 else (3, 3):
            gpu.pass_time(seconds)
            gpu.watts = watts
            played.step()
    mean = 300.0 if counts else 200.0
    assert played.module.rows == [(2, {"train/power_watts": 100.0}), (4, {"train/power_watts": pytest.approx(mean)})]
    assert played.callback.kwh == pytest.approx((400 + 6 * mean) / 3.6e6)


def test_what_follows_the_last_row_counts(nvml, run):
    gpu = nvml()
    gpu.watts = 50.0
    played = run(Energy())
    gpu.pass_time(36)
    played.callback.on_train_end(played.trainer, played.module)
    assert played.callback.kwh == pytest.approx(0.0005)


def test_the_energy_of_a_continued_run_is_of_all_of_it(nvml, run):
    gpu = nvml()
    gpu.watts = 100.0
    first, checkpoint = run(Energy()), {}
    gpu.pass_time(36)
    first.callback.on_save_checkpoint(first.trainer, first.module, checkpoint)
    second = Energy()
    second.on_load_checkpoint(first.trainer, first.module, checkpoint)
    gpu.pass_time(1000)  # between the two
    second = run(second)
    gpu.pass_time(72)
    second.step()
    second.step()
    assert second.callback.kwh == pytest.approx(0.003)
    # A part that was run where nothing is measured leaves the whole unknown.
    third = Energy()
    third.on_load_checkpoint(first.trainer, first.module, {})
    assert run(third).callback.kwh is None


def test_ranks_add_up_and_one_that_cannot_tell_leaves_the_sum_unknown(nvml, run):
    gpu = nvml()
    gpu.watts = 100.0
    for others, expected in ((700.0, 0.00025), (float("nan"), None)):
        callback = Energy()
        played = run(callback, world_size=2, reduce=lambda own, op, others=others: own + others)
        played.trainer.strategy.root_device = torch.device("cpu")
        gpu.pass_time(2)
        played.step()
        played.step()
        assert callback.kwh == (pytest.approx(expected) if expected else None)
        assert bool(played.module.rows) == bool(expected)


@pytest.mark.parametrize(("device", "enabled"), [("cpu", True), ("cuda", False)])
def test_nothing_where_there_is_no_gpu_or_nobody_asks(nvml, run, device, enabled):
    nvml()
    played = run(Energy(enabled), device)
    played.step()
    played.step()
    checkpoint = {}
    played.callback.on_save_checkpoint(played.trainer, played.module, checkpoint)
    assert (played.module.rows, played.callback.kwh, checkpoint) == ([], None, {})


def test_a_missing_package_is_said_once(nvml, run, monkeypatch, caplog):
    nvml()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with caplog.at_level(logging.INFO):
        played = run(Energy())
        for _ in range(4):
            played.step()
    assert caplog.messages == [
        "The energy of the run is not measured: it needs the package nvidia-ml-py: pip install 'topklm[energy]'."
    ]
    assert (played.module.rows, played.callback.kwh) == ([], None)


def test_a_gpu_that_stops_telling(nvml, run, caplog):
    gpu = nvml()
    gpu.watts = 100.0
    played = run(Energy())
    gpu.pass_time(1)
    played.step()
    played.step()
    gpu.lost = True
    for _ in range(4):
        played.step()
    sentence = "The energy of the run is no longer measured: the driver does not tell it (Not Supported)."
    assert caplog.messages == [sentence]
    assert len(played.module.rows) == 1
    assert played.callback.kwh is None


def test_enabled_is_true_or_false():
    with pytest.raises(ValueError, match="callbacks.energy.enabled=5: give true or false"):
        Energy(5)
