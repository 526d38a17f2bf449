"""What a plan is made for: the section ``plan`` of ``conf/plan.yaml``."""

from __future__ import annotations

from dataclasses import dataclass

from ..training.hardware import ACCELERATORS, find_accelerator


@dataclass(frozen=True)
class PlanConfig:
    """A device to plan for, and what is assumed of it.

    Attributes:
        device: a name such as H100, one of ``training.hardware.ACCELERATORS``; None plans for this machine.
        devices: how many of them; None takes as many as the run's ``trainer.devices`` and ``trainer.num_nodes``.
        mfu: the share of the peak that training reaches, above 0 and at most 1.
        watts: what one device draws; None takes the most that its board may, by its data sheet.
        euro_per_gpu_hour: the price of one device for an hour; None names no cost.
    """

    device: str | None = None
    devices: int | None = None
    mfu: float = 0.4
    watts: float | None = None
    euro_per_gpu_hour: float | None = None

    def __post_init__(self) -> None:
        if self.device is not None and find_accelerator(self.device) is None:
            known = ", ".join(accelerator.name for accelerator in ACCELERATORS)
            raise ValueError(f"plan.device={self.device} is not known: choose from {known}.")
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"plan.devices={self.devices}: give 1 or more, or null.")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"plan.mfu={self.mfu}: give a share of the peak above 0 and at most 1.")
        for name in ("watts", "euro_per_gpu_hour"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"plan.{name}={value}: give 0 or more, or null.")
