"""What a run would take: parameters, memory, FLOPs, time, energy and money, with what was assumed for each."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..benchmarks.contenders import Bench
from ..errors import UserError
from ..model import Flops, ModelConfig, TopKTransformer, count_flops, parameters_by_part
from ..training.config import RunConfig
from ..training.hardware import Accelerator, find_accelerator, resolve_device, resolve_precision
from .memory import Memory, step_memory
from .settings import PlanConfig

TIMED_SECONDS, TIMED_STEPS = 4.0, 5  # of steps on this machine, whichever comes first, after one to warm up
TWICE = ("block", "block_sparse")  # checkpointing by which every block goes forward twice
MOST_TIMED_FLOPS = 2e12  # in a step: more would take a CPU longer than anybody waits for a plan


@dataclass(frozen=True)
class Plan:
    """A run before it is run.

    Attributes:
        model: with its vocabulary. parameters: by part. memory: of one device. flops: per token.
        computed_flops: ``flops.training`` and what activation checkpointing computes again.
        steps, batch_tokens: of the run. micro_windows, micro_batches: of one device and step.
        checkpointing: ``trainer.activation_checkpointing``. precision: Lightning's name.
        device: where, in words. devices: how many.
        capacity: bytes of memory of one device, None if unknown; of a CPU those that are free now.
        seconds: of the training steps, None where they cannot be told. watts: of one device, None if unknown.
        euro_per_hour: of one device, None if unknown.
        assumptions: sentences.
    """

    model: ModelConfig
    parameters: dict[str, int]
    memory: Memory
    flops: Flops
    computed_flops: float
    steps: int
    batch_tokens: int
    micro_windows: int
    micro_batches: int
    checkpointing: str
    device: str
    devices: int
    precision: str
    capacity: float | None
    seconds: float | None
    watts: float | None
    euro_per_hour: float | None
    assumptions: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def fits(self) -> bool:
        """Whether a step fits into a device's memory, as far as that is known."""
        return self.capacity is None or self.memory.total <= self.capacity

    @property
    def total_flops(self) -> float:
        """Of training, dense-equivalent."""
        return self.tokens * self.flops.training

    @property
    def device_hours(self) -> float | None:
        return None if self.seconds is None else self.devices * self.seconds / 3600

    @property
    def kwh(self) -> float | None:
        return None if self.device_hours is None or self.watts is None else self.device_hours * self.watts / 1000

    @property
    def euro(self) -> float | None:
        hours, price = self.device_hours, self.euro_per_hour
        return None if hours is None or price is None else hours * price


def make_plan(config: RunConfig, settings: PlanConfig) -> Plan:
    """Plans the run that ``config`` describes. Reads nothing but the tokenizer, where that is given.

    Raises:
        UserError: devices that cannot share the batch, a named device without a known peak for the precision, or a
            tokenizer that cannot be had.
    """
    assumptions: list[str] = []
    model = config.model_config(_vocab_size(config, assumptions))
    here = _device(config, settings)
    precision = _precision(config, settings, here)
    devices = settings.devices or config.trainer.ranks
    windows = config.training.windows_per_step(model.seq_len)
    if windows % devices:
        raise UserError(
            f"plan.devices={devices} cannot share the {windows} windows of training.batch_tokens="
            f"{config.training.batch_tokens} evenly: change one of them."
        )
    micro = config.training.micro_windows(model.seq_len, windows // devices, here)
    checkpointing = config.trainer.activation_checkpointing
    flops = count_flops(model)
    computed_flops = flops.hardware(checkpointing in TWICE)
    memory = step_memory(
        model,
        config.optimizer,
        micro_windows=micro,
        micro_batches=windows // devices // micro,
        precision=precision,
        documents=config.data.attend == "document",
        on_gpu=here != "cpu",
        checkpointing=checkpointing,
        k_schedule=config.k_schedule_of(model),
    )
    assumptions.append(
        "Memory: the tensors of an eager step, by walking through it without data; a library's own (a CUDA context, "
        "fragments) come on top, torch.compile needs less."
    )
    if checkpointing == "block_sparse":
        assumptions.append("Memory is that of the largest k of the run: block_sparse saves more as k falls.")
    with torch.device("meta"):
        parameters = parameters_by_part(TopKTransformer(model))
    accelerator = _accelerator(settings, here)
    capacity = _capacity(settings, accelerator, here)
    step_flops = config.training.batch_tokens * computed_flops
    name, seconds, watts = _time(
        config, settings, accelerator, here, precision, devices, capacity, memory, model, step_flops, assumptions
    )
    return Plan(
        model=model,
        parameters=parameters,
        memory=memory,
        flops=flops,
        computed_flops=computed_flops,
        steps=config.training.steps,
        batch_tokens=config.training.batch_tokens,
        micro_windows=micro,
        micro_batches=windows // devices // micro,
        checkpointing=checkpointing,
        device=name,
        devices=devices,
        precision=precision,
        capacity=capacity,
        seconds=seconds,
        watts=watts,
        euro_per_hour=settings.euro_per_gpu_hour,
        assumptions=assumptions,
    )


def _vocab_size(config: RunConfig, assumptions: list[str]) -> int:
    given = config.tokenizer.given()
    if given is not None:
        return given.vocab_size
    assumptions.append(
        f"Vocabulary: the {config.tokenizer.vocab_size:,} tokens asked for; a little text may give fewer."
    )
    return config.tokenizer.vocab_size


def _device(config: RunConfig, settings: PlanConfig) -> str:
    """The kind of device to plan for: ``cuda`` for a named one."""
    if settings.device is not None:
        return "cuda"
    asked = config.trainer.accelerator
    if asked in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={asked} is not on this machine: name it with plan.device=H100 or the like."
        )
    return resolve_device(asked)


def _precision(config: RunConfig, settings: PlanConfig, here: str) -> str:
    if settings.device is None:
        return resolve_precision(config.trainer.precision, here)
    asked = "bf16-mixed" if config.trainer.precision == "auto" else resolve_precision(config.trainer.precision, here)
    if not asked.startswith("bf16"):
        raise UserError(
            f"trainer.precision={config.trainer.precision}: the peak of {settings.device} is known for bf16 only: use "
            f"auto, bf16-mixed or bf16-true to plan for it."
        )
    return asked


def _accelerator(settings: PlanConfig, here: str) -> Accelerator | None:
    if settings.device is not None:
        return find_accelerator(settings.device)
    return find_accelerator(torch.cuda.get_device_name()) if here == "cuda" else None


def _capacity(settings: PlanConfig, accelerator: Accelerator | None, here: str) -> float | None:
    """Bytes of memory of a named device, or those that are free on a device of this machine."""
    if settings.device is not None:
        return accelerator.memory if accelerator is not None else None
    if here == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    return float(_free_bytes()) if here == "cpu" else None


def _time(
    config: RunConfig,
    settings: PlanConfig,
    accelerator: Accelerator | None,
    here: str,
    precision: str,
    devices: int,
    capacity: float | None,
    memory: Memory,
    model: ModelConfig,
    step_flops: float,
    assumptions: list[str],
) -> tuple[str, float | None, float | None]:
    """Name of the device, seconds of all steps, watts of one device."""
    steps = config.training.steps
    if accelerator is not None and precision.startswith("bf16"):
        assumptions.append(
            f"Time: {settings.mfu:.0%} of the dense bf16 peak of {accelerator.peak_flops / 1e12:,.0f} TFLOP/s "
            f"(plan.mfu), for the steps alone; validation, checkpoints, the start and waiting for data come on top."
        )
        if config.trainer.activation_checkpointing in TWICE:
            assumptions.append("What checkpointing computes again takes time of its own: plan.mfu is that without it.")
        watts = accelerator.watts if settings.watts is None else settings.watts
        whose = "what its board may draw at most" if settings.watts is None else "plan.watts"
        assumptions.append(f"Energy: {watts:,.0f} W for each device ({whose}), without the machine around it.")
        seconds = steps * step_flops / (devices * settings.mfu * accelerator.peak_flops)
        return accelerator.name, seconds, watts
    name = torch.cuda.get_device_name() if here == "cuda" else "this machine's CPU" if here == "cpu" else here
    obstacle = _obstacle(here, devices, capacity, memory, step_flops)
    if obstacle is not None:
        assumptions.append(f"Time: not known, since {obstacle}. plan.device=H100 and the like plan for a GPU.")
        return name, None, settings.watts
    bench = dataclasses.replace(Bench.of(config), model=model)
    per_step, taken = _seconds_per_step(bench.ours(telemetry=True))
    assumptions.append(
        f"Time: steps on random tokens take {per_step:.3g} s here and now, the mean of {taken}; validation, "
        f"checkpoints and the start come on top."
    )
    return name, steps * per_step, settings.watts


def _obstacle(here: str, devices: int, capacity: float | None, memory: Memory, step_flops: float) -> str | None:
    """Why steps cannot be timed here, or None."""
    if devices > 1:
        return f"{devices} devices cannot be timed by one"
    if capacity is not None and memory.total > capacity:
        return f"a step needs {memory.total / 1e9:,.1f} GB and {capacity / 1e9:,.1f} GB are free here"
    if here == "cpu" and step_flops > MOST_TIMED_FLOPS:
        return f"a step has {step_flops / 1e12:,.1f} TFLOPs, too many to time on a CPU"
    return None


def _free_bytes() -> int:
    """What a process may still take; where the system does not say, all that the machine has."""
    meminfo = Path("/proc/meminfo")
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(available[1]) * 1024 if available else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _seconds_per_step(step: Callable[[], None]) -> tuple[float, int]:
    """Mean seconds of a step, and of how many."""

    def call() -> None:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    call()
    started, taken = time.perf_counter(), 0
    while taken < TIMED_STEPS and (taken == 0 or time.perf_counter() - started < TIMED_SECONDS):
        call()
        taken += 1
    return (time.perf_counter() - started) / taken, taken
