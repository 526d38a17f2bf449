"""Whether ``trainer.compile=true`` pays on this device: steps with and without, and what compiling takes first."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable

import torch

from ..errors import UserError
from ..training.config import RunConfig
from ..training.hardware import compile_obstacle, resolve_device
from .contenders import Bench
from .timing import Plot, Result, Row, interleave

PLAIN, COMPILED = "plain", "compiled"


def compile_benchmark(config: RunConfig, rounds: int) -> Result:
    """Times TopK and the dense twin, each with and without torch.compile of every block.

    Raises:
        UserError: nothing can be compiled here.
    """
    obstacle = compile_obstacle(resolve_device(config.trainer.accelerator))
    if obstacle is not None:
        raise UserError(f"what=compile: {obstacle}, so nothing can be compiled here.")
    # Else what an earlier run compiled would cost nothing.
    with torch.compiler.config.patch(force_disable_caches=True), warnings.catch_warnings():  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
        return _measure(config, rounds)


def _measure(config: RunConfig, rounds: int) -> Result:
    plain = dataclasses.replace(Bench.of(config), compile=False)
    rows: list[Row] = []
    findings = []
    for model, topk in (("topk", True), ("dense twin", False)):
        torch.compiler.reset()  # a block of the last model's shape would not be compiled again
        contenders = {PLAIN: plain.ours(topk), COMPILED: dataclasses.replace(plain, compile=True).ours(topk)}
        first = {name: _seconds(call) for name, call in contenders.items()}
        timings = interleave(contenders, rounds)
        gain = timings[COMPILED].speed_over(timings[PLAIN])
        for name, timing in timings.items():
            rows.append(
                {
                    "contender": model,
                    "step": name,
                    "ms per step": 1000 * timing.median,
                    "tokens/s": config.training.batch_tokens / config.trainer.ranks / timing.median,
                    "first step, s": first[name],
                }
            )
        spent = first[COMPILED] - first[PLAIN]
        saved = timings[PLAIN].median * (1 - 1 / gain)
        pays = f"pays after {max(1, round(spent / saved)):,} steps" if saved > 0 else "does not pay"
        findings.append(
            f"{model}: compiled steps are {gain:.2f} times as fast, compiling takes {spent:.0f} s with empty caches: "
            f"it {pays} (the run has {config.training.steps:,})"
        )
    title = f"compile: {config.plain['model']['name']}, batch of {config.training.batch_tokens} tokens, no telemetry"
    return Result(title, rows, findings, Plot(y="tokens/s", series="step"))


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
