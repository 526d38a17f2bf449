"""The cost of a training step: with TopK and telemetry, without telemetry, the dense twin, and peers of the same shape.

Two comparisons: the run's own settings, which say what TopK and telemetry cost; and the peers, for which all
contenders have fused AdamW, once in the run's precision and once in float32. The first contender runs the telemetry's
callbacks after each step, as a run does, and another one logs a row after each.
"""

from __future__ import annotations

import dataclasses

from ..model import count_flops
from ..training.config import RunConfig
from ..training.hardware import peak_flops
from .contenders import LITGPT, LLAMA, Bench, Missing
from .timing import Plot, Result, Row, Timing, interleave

TOPK, LOGGED, NO_TELEMETRY, DENSE = "topk", "topk, every step logged", "topk, no telemetry", "dense twin"
STEPS_PER_ROUND = 2
PEER_BARS = {LLAMA: 1.1, LITGPT: 1.0}  # how many times as fast ours should be


def step_benchmark(config: RunConfig, rounds: int) -> Result:
    """Times the contenders.

    Returns:
        A row per contender: optimizer, precision, ms and tokens/s of a step, its speed over the dense twin's, and MFU
        where the device's peak is known. The findings say what the telemetry costs, how the peers compare, and which of
        them are left out since their package is not there.
    """
    own = Bench.of(config, STEPS_PER_ROUND)
    rows, findings = _compare(own, (), rounds)
    adamw = dataclasses.replace(config.optimizer, name="adamw")
    for precision in dict.fromkeys((own.precision, "32-true")):
        more, found = _compare(dataclasses.replace(own, precision=precision, optimizer=adamw), (LLAMA, LITGPT), rounds)
        rows += more
        findings += [finding for finding in found if finding not in findings]
    title = f"step: {config.plain['model']['name']}, batch of {config.training.batch_tokens} tokens"
    return Result(title, rows, findings, Plot(y="tokens/s", series="contender", panels=("settings",)))


def _compare(bench: Bench, peers: tuple[str, ...], rounds: int) -> tuple[list[Row], list[str]]:
    findings = []
    contenders = {
        TOPK: bench.ours(telemetry=True),
        NO_TELEMETRY: bench.ours(),
        DENSE: bench.ours(topk=False),
    }
    if not peers:
        contenders[LOGGED] = bench.ours(telemetry=True, log_every=1)
    for name in peers:
        try:
            contenders[name] = bench.peer(name)
        except Missing as missing:
            findings.append(str(missing))
    timings = interleave(contenders, rounds)
    settings = f"{bench.optimizer.name}, {bench.precision}"
    rows = [row(timing, timings[DENSE], settings, bench) for timing in timings.values()]
    if not peers:
        # A median leaves out the rare round in which the first contender logs a row.
        cost, logged = (1 / timings[name].speed_over(timings[NO_TELEMETRY]) - 1 for name in (TOPK, LOGGED))
        log_every = bench.config.training.log_every
        findings.append(
            f"telemetry adds {cost:+.1%} to a step and {logged:+.1%} to one whose row is logged, medians of {rounds} "
            f"paired rounds: {cost + (logged - cost) / log_every:+.1%} with training.log_every={log_every}"
        )
    for peer in timings.keys() & PEER_BARS.keys():
        dense, topk = (timings[name].speed_over(timings[peer]) for name in (DENSE, TOPK))
        findings.append(
            f"{settings}: the dense twin is {dense:.2f} times and TopK {topk:.2f} times as fast as {peer} (bar: "
            f"{PEER_BARS[peer]:.1f})"
        )
    return rows, findings


def row(timing: Timing, dense: Timing, settings: str, bench: Bench) -> Row:
    """A contender's row, in the order of the columns."""
    step = timing.median / bench.steps
    rate = bench.config.training.batch_tokens / bench.config.trainer.ranks / step
    made: Row = {
        "contender": timing.name,
        "settings": settings,
        "ms per step": 1000 * step,
        "tokens/s": rate,
        "vs dense twin": timing.speed_over(dense),
    }
    peak = peak_flops(bench.device, bench.precision)
    if peak is not None:
        made["MFU"] = rate * count_flops(bench.model).training / peak
    return made
