"""Schedules: pure functions of training progress, shared by k and the learning rate.

Progress runs from 0 (before the first step) to 1 (after the last). Nothing here holds state, so a resumed run needs
none.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

SHAPES = ("constant", "linear", "cosine", "exponential", "step")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
ROUNDING = 1e-9  # shares of training are sums and quotients of floats: 0.8 + 0.2 may arrive a little late


def interpolate(shape: str, u: float, start: float, end: float, n_steps: int = 8) -> float:
    """The value a share ``u`` of the way from ``start`` to ``end``; u is clipped to [0, 1].

    ``linear``; ``cosine``, slow at both ends; ``exponential``, equal ratios in equal times (both ends must be
    positive); ``step``, ``n_steps`` equal jumps, the last one on arrival; ``constant``, ``end`` throughout.
    """
    u = min(1.0, max(0.0, u))
    if shape == "constant" or u == 1.0:
        return end
    if shape == "linear":
        return start + (end - start) * u
    if shape == "cosine":
        return start + (end - start) * 0.5 * (1.0 - math.cos(math.pi * u))
    if shape == "exponential":
        return start * (end / start) ** u
    if shape == "step":
        return start + (end - start) * math.floor(u * n_steps + ROUNDING) / n_steps
    raise ValueError(f"unknown schedule shape {shape!r}: choose from {', '.join(SHAPES)}.")


def share_of_training(duration: int | float | str, name: str, total_steps: int, tokens_per_step: int) -> float:
    """A duration as a share of the training run.

    Args:
        duration: a float from 0 to 1, the share itself; an int, a number of steps; or text such as ``"5%"``, ``"200
            steps"``, ``"20M tokens"``.
        name: the override to name in an error.
        total_steps, tokens_per_step: the length of the run.

    Raises:
        ValueError: not a duration, or negative.
    """
    help_ = f"{name}={duration}: give a share of training such as 0.1, 1.0 or 10%, steps such as 200, or '2M tokens'."
    if isinstance(duration, bool) or not isinstance(duration, (int, float, str)):
        raise ValueError(help_)
    if isinstance(duration, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:(%)|([kmb]?)\s*(steps?|tokens?))\s*", duration.lower())
        if not match:
            raise ValueError(help_)
        number, percent, unit, kind = float(match[1]), match[2], match[3] or "", match[4]
        share = (
            number / 100
            if percent
            else number * UNITS[unit] / (total_steps * (tokens_per_step if kind.startswith("token") else 1))
        )
    elif isinstance(duration, int):
        share = duration / total_steps
    else:
        share = duration
        if share > 1:
            raise ValueError(help_)
    if not share >= 0:  # NaN is not
        raise ValueError(help_)
    return share


@dataclass(frozen=True)
class Schedule:
    """A value that waits at its start, moves to its end, and stays there.

    Attributes:
        shape: one of SHAPES.
        hold: share of training spent at the start value before moving.
        length: share of training that the move takes.
        n_steps: number of jumps, for ``step``.
    """

    shape: str
    hold: float = 0.0
    length: float = 1.0
    n_steps: int = 8

    def __call__(self, progress: float, start: float, end: float) -> float:
        """The value at ``progress`` (0 to 1), between ``start`` and ``end``."""
        if self.shape == "constant":
            return end
        if progress < self.hold:
            return start
        if progress >= self.hold + self.length - ROUNDING:
            return end
        return interpolate(self.shape, (progress - self.hold) / self.length, start, end, self.n_steps)

    def integer(self, progress: float, start: int, end: int) -> int:
        """The value rounded to a whole number, such as a k."""
        return round(self(progress, float(start), float(end)))


@dataclass(frozen=True)
class KSchedule:
    """k over training, for each of the TopK blocks.

    Attributes:
        blocks: per TopK block, how k moves, and its first value (None: as wide as the site, dense).
    """

    blocks: tuple[tuple[Schedule, int | None], ...]

    def k(self, progress: float, block: int, width: int, final: int) -> int:
        """k at ``progress`` (0 to 1) of a site in the ``block``-th TopK block, ``width`` neurons wide, that keeps
        ``final`` in the end."""
        schedule, start = self.blocks[block]
        return schedule.integer(progress, width if start is None else start, final)


@dataclass(frozen=True)
class Trapezoid:
    """A factor that rises linearly from 0 to 1, stays, and decays to ``end``: the learning rate over its peak.

    Attributes:
        warmup: share of training spent rising.
        decay: share of training spent decaying, at the end; ``1 - warmup`` leaves no plateau.
        shape: shape of the decay, one of SHAPES but ``constant``, which means no decay.
        end: the factor on arrival.
    """

    warmup: float
    decay: float
    shape: str
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        """The factor at ``progress`` (0 to 1)."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.shape == "constant" or self.decay <= 0:
            return 1.0
        begins = max(self.warmup, 1.0 - self.decay)
        return (
            interpolate(self.shape, (progress - begins) / (1.0 - begins), 1.0, self.end) if progress > begins else 1.0
        )
