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


Row = dict[str, str | float]


@dataclass(frozen=True)
class Plot:
    """How a table becomes a picture; without anything said, a bar for each row.

    Attributes:
        y: the column whose numbers are drawn; None takes the last with numbers in every row.
        x: a column of numbers to draw lines over; None draws bars.
        label: columns that name a bar; None takes those left of ``y``.
        series: the column that names the line, or gives the bar its colour; None has one.
        panels: columns whose values get a panel each, such as a unit; none have one panel.
        log: both axes of lines are logarithmic.
    """

    y: str | None = None
    x: str | None = None
    label: tuple[str, ...] | None = None
    series: str | None = None
    panels: tuple[str, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Result:
    """What a benchmark found: a table, sentences that say what to read from it, and how to draw it."""

    title: str
    rows: list[Row]
    findings: list[str]
    plot: Plot = Plot()


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
