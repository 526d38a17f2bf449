"""Timing contenders fairly on a noisy machine: one process, turn by turn, medians, ratios within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one contender, a value per round."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def speed_over(self, other: Timing) -> float:
        """How many times as fast as ``other``: the median over rounds of the ratio within a round, in which both met
        the same noise."""
        return statistics.median(b / a for a, b in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True)
class Result:
    """What a benchmark found: a table, and sentences that say what to read from it."""

    title: str
    rows: list[dict[str, str | float]]
    findings: list[str]


def interleave(contenders: dict[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, Timing]:
    """Calls every contender once a round, each round beginning with another one; the first ``warmup`` rounds do not
    count."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            _synchronize()
            started = time.perf_counter()
            contenders[name]()
            _synchronize()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(name, values) for name, values in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
