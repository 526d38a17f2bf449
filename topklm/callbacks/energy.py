"""Logs the power that the GPUs draw and sums up the energy of the run, where NVIDIA's management library tells it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from .base import reducer, require_flag, watched

log = logging.getLogger(__name__)

CHECKPOINT_KEY = "energy"
JOULES_PER_KWH = 3.6e6


class Energy(L.Callback):
    """``train/power_watts``, and the energy from the first step to the last, all GPUs together, validation and
    checkpoints included.

    Read at logged steps, in the calling thread and without waiting for the device. GPUs since Volta count their energy
    themselves; of others the power is sampled at logged steps and taken to move in a straight line between them. Where
    nothing is known nothing is logged, and on a GPU a line says why.

    Args:
        enabled: measure at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        require_flag("energy.enabled", enabled)
        self.enabled = enabled
        self._meter: GpuMeter | None = None
        self._asked = False  # whether ranks read and reduce: the same on all of them
        self._before = 0.0  # joules of earlier processes of this run
        self._joules = 0.0  # of this one, over all ranks, as of the last reading
        self._read_at = 0.0

    @property
    def kwh(self) -> float | None:
        """The energy of the run so far; None where it is not known."""
        total = self._before + self._joules
        return total / JOULES_PER_KWH if self._asked and math.isfinite(total) else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asked = self.enabled and pl_module.device.type == "cuda"
        if not self._asked:
            return
        try:
            self._meter = GpuMeter(pl_module.device)
        except MeterError as error:
            if trainer.global_rank == 0:
                log.info("The energy of the run is not measured: %s", error)
        self._joules, self._read_at = 0.0, time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        module = watched(pl_module)
        if not (self._asked and module.is_log_step):
            return
        joules, since = self._joules, self._read_at
        self._read(trainer, pl_module)
        if math.isfinite(self._joules) and self._read_at > since:
            module.add_metrics({"train/power_watts": (self._joules - joules) / (self._read_at - since)})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._asked:
            self._read(trainer, pl_module)

    def _read(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Every rank reads its own device, also one that cannot: NaN, which makes the sum unknown."""
        try:
            own = self._meter.joules() if self._meter else math.nan
        except MeterError as error:
            self._meter, own = None, math.nan
            log.warning("The energy of the run is no longer measured: %s", error)
        self._read_at = time.monotonic()
        if trainer.world_size > 1:
            own_t = torch.tensor(own, dtype=torch.float64, device=trainer.strategy.root_device)
            own = float(reducer(trainer, "sum")(own_t))
        self._joules = own

    # Straight into the checkpoint, and not by state_dict: see DeadNeurons.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._asked:
            self._read(trainer, pl_module)
            checkpoint[CHECKPOINT_KEY] = {"joules": self._before + self._joules}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # What a part of the run on another device drew is not known.
        self._before = checkpoint.get(CHECKPOINT_KEY, {"joules": math.nan})["joules"]


class MeterError(Exception):
    """Power and energy of a device cannot be read; the message says why."""


class GpuMeter:
    """Reads the energy that a GPU has drawn since this object was made, through the package nvidia-ml-py.

    Args:
        device: a CUDA device, which is found by its UUID, whatever CUDA_VISIBLE_DEVICES says.

    Raises:
        MeterError: the package, the driver or the device does not tell it.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise MeterError("it needs the package nvidia-ml-py: pip install 'topklm[energy]'.") from error
        self._nvml = pynvml
        with self._errors():
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self._start: float | None = None
        try:
            self._start = self._counter()
        except pynvml.NVMLError:  # older than Volta
            self._sum, self._at, self._watts = 0.0, time.monotonic(), self._power()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._nvml.NVMLError as error:
            raise MeterError(f"the driver does not tell it ({error}).") from error

    def joules(self) -> float:
        """Energy so far. Raises MeterError if it cannot be read any more."""
        with self._errors():
            if self._start is not None:
                return self._counter() - self._start
        now, watts = time.monotonic(), self._power()
        self._sum += (now - self._at) * (watts + self._watts) / 2
        self._at, self._watts = now, watts
        return self._sum

    def _counter(self) -> float:
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3  # from millijoules

    def _power(self) -> float:
        with self._errors():
            return self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3  # from milliwatts
