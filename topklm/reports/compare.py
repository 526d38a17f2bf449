"""What varies between runs, and what came of it: runs that differ in nothing but the seed make a row, with the mean of
its seeds, their spread, and the cost of sparsity against the dense twin of each seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..training.flat import is_below
from ..training.resume import FREE_TO_CHANGE
from .runs import Run

# What says nothing of what a run computes. Where it runs (trainer.devices and the like) is told apart where it varies.
ASIDE = ("seed", "run", "resume", "logger", "model.name", "data.cache_dir")
# What a run may differ in and still have the same dense twin: what changes no result, what makes it sparse, and what is
# looked at.
SPARSITY = ("topk", "k_schedule")
NOT_OF_A_TWIN = (
    *FREE_TO_CHANGE,
    "model.name",
    *SPARSITY,
    "callbacks",
    "training.eval_at_start",
    "training.eval_every",
    "training.log_every",
)
AS_K = ("topk.k", "topk.k_ratio")  # compared by the k they come to
FEW_FACTORS = 2  # are named in every row
RESULTS = (
    "val_loss",
    "val_bpb",
    "cost",
    "dead_worst",
    "dead_window_tokens",
    "energy_kept_last",
    "tokens_per_second",
    "params",
    "tokens",
)


@dataclass(frozen=True)
class Stat:
    """Values of one result over seeds. ``std``: the sample standard deviation, None of a single value."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: its name. apart: the factors that tell it from others of its width, as ``select=magnitude``.
        factors: the settings that vary between rows, None where they have no meaning. facts: what the settings come to
            (width, k, ...). runs: all of them.
        results: by name, of the finished runs; without those not measured. dense: the means of the dense twins of its
            seeds, by name of the result.
        on_front: no other row with TopK has both a k as low and a loss as low.
    """

    label: str
    apart: tuple[str, ...]
    factors: Mapping[str, Any]
    facts: Mapping[str, Any]
    runs: tuple[Run, ...]
    results: Mapping[str, Stat]
    dense: Mapping[str, float]
    on_front: bool = False

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.is_finished]

    @property
    def is_dense(self) -> bool:
        return bool(self.facts.get("dense"))


@dataclass(frozen=True)
class Comparison:
    """Everything a report shows. ``factors``: names of the settings that vary, besides seed, width and k; ``shared``:
    the settings that all runs agree in; ``rows``: in order; ``runs``: all runs."""

    runs: list[Run]
    rows: list[Row]
    factors: list[str]
    shared: Mapping[str, Any]

    @property
    def is_study(self) -> bool:
        return any(run.variant for run in self.runs)

    @property
    def dead_windows(self) -> set[int]:
        """Over how many tokens neurons count as dead, in all rows."""
        stats = (row.results.get("dead_window_tokens") for row in self.rows)
        return {int(window) for stat in stats if stat is not None for window in stat.values}

    @property
    def unfinished(self) -> list[Run]:
        """Runs that are not finished, or whose training a callback ended early."""
        return [run for run in self.runs if not run.is_finished or run.ended_early]


def compare(runs: Sequence[Run], variants: Sequence[str] = (), reference: str | None = None) -> Comparison:
    """Puts runs side by side.

    Args:
        runs: of one sweep or of several. variants: for a study, the names of the rows, in order. reference: the variant
            whose run of the same seed is the dense twin; None finds the twins by their settings.
    """
    usable = [run for run in runs if run.facts]
    varying = _varying(usable)
    factors = [name for name in _without_repeats(varying, usable) if not is_below(name, (*AS_K, "model.d_model"))]
    groups: dict[Any, list[Run]] = {}
    for run in usable:
        key = run.variant or _key([*factors, "model.d_model"], run)
        groups.setdefault(key, []).append(run)
    telling = [name for name in factors if not _follows_width(name, usable)]
    # With many factors, most rows have the usual value of most of them.
    usual = _usual(telling, [group[0] for group in groups.values()]) if len(telling) > FEW_FACTORS else {}
    rows = [_row(group, factors, telling, usual, runs, reference) for group in groups.values()]
    if variants:
        rows.sort(key=lambda row: variants.index(row.label))
    else:
        rows.sort(key=lambda row: _order(row, factors))
    rows = [Row(**{**vars(row), "on_front": _on_front(row, rows)}) for row in rows]
    shared = {}
    if usable:
        names = set.intersection(*(set(run.settings) for run in usable)) - set(varying)
        shared = {name: usable[0].settings[name] for name in sorted(names) if not is_below(name, ASIDE)}
    return Comparison(list(runs), rows, factors, shared)


# --- what varies ------------------------------------------------------------------------------------------------------


def _setting(run: Run, name: str) -> Any:
    """A setting's value, None where it has no meaning for the run: how k moves means nothing in a dense one."""
    return None if run.is_dense and is_below(name, SPARSITY) else run.settings.get(name)


def _varying(runs: Sequence[Run]) -> list[str]:
    """Settings of which two runs have different values. One that some runs lack, as they have another data source or
    were made by another version, varies only if it does among those that have it."""
    names = sorted({name for run in runs for name in run.settings if not is_below(name, ASIDE)})
    varying = []
    for name in names:
        having = [run for run in runs if name in run.settings and not (run.is_dense and is_below(name, SPARSITY))]
        if len({_text(run.settings[name]) for run in having}) > 1:
            varying.append(name)
    return varying


def _without_repeats(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Leaves out a setting that is equal to another in every run, such as one that follows it by interpolation."""
    kept: dict[tuple[str, ...], str] = {}
    for name in sorted(names, key=lambda name: (name.count("."), len(name), name)):
        kept.setdefault(tuple(_text(_setting(run, name)) for run in runs), name)
    return sorted(kept.values())


def _follows_width(name: str, runs: Sequence[Run]) -> bool:
    """Whether a setting has one value for each of several widths, as a number of heads that grows with the width."""
    values: dict[int, set[str]] = {}
    for run in runs:
        if (value := _setting(run, name)) is not None:
            values.setdefault(run.facts["width"], set()).add(_text(value))
    return len(values) > 1 and all(len(found) == 1 for found in values.values())


def _usual(names: Sequence[str], runs: Sequence[Run]) -> dict[str, str]:
    """The most frequent value of each setting, as text."""
    values = {name: [_text(value) for run in runs if (value := _setting(run, name)) is not None] for name in names}
    return {name: statistics.mode(found) for name, found in values.items() if found}


def _key(factors: Iterable[str], run: Run) -> tuple[str, ...]:
    return (*(_text(_setting(run, name)) for name in factors), _text(run.facts["ks"]))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def short_names(factors: Sequence[str]) -> dict[str, str]:
    """Each setting by as many of the last parts of its name as tell it from the others."""
    taken = ("k", "width", "seed", "n")
    short = {}
    for name in factors:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            end = ".".join(parts[-count:])
            if end not in taken and sum(f".{other}".endswith(f".{end}") for other in factors) == 1:
                break
        short[name] = end
    return short


# --- rows -------------------------------------------------------------------------------------------------------------


def _row(
    group: Sequence[Run],
    factors: Sequence[str],
    telling: Sequence[str],
    usual: Mapping[str, str],
    runs: Sequence[Run],
    reference: str | None,
) -> Row:
    first = group[0]
    values = {name: _setting(first, name) for name in factors}
    # A dense twin may have been trained twice, by two sweeps: each seed counts once, by the run that is also its twin.
    by_seed: dict[int | None, Run] = {}
    for run in group:
        if run.is_finished:
            by_seed.setdefault(run.seed, run)
    results: dict[str, list[float]] = {name: [] for name in RESULTS}
    dense: dict[str, list[float]] = {name: [] for name in RESULTS}
    for run in by_seed.values():
        twin = _twin(run, runs, reference)
        for name, value in run.result.items():
            if value is not None:
                results[name].append(value)
            if twin is not None and twin.result[name] is not None:
                dense[name].append(twin.result[name])  # type: ignore[arg-type]
        if run.is_dense and run.variant is None:
            continue  # its twin is itself, or itself once more
        if twin is not None and twin is not run and run.result["val_loss"] and twin.result["val_loss"]:
            results["cost"].append(run.result["val_loss"] / twin.result["val_loss"] - 1)
    short = short_names(factors)
    apart = tuple(
        f"{short[name]}={show(value)}"
        for name, value in values.items()
        if name in telling and value is not None and _text(value) != usual.get(name)
    )
    return Row(
        label=first.variant or ", ".join([f"width {first.facts['width']}", k_text(first.facts), *apart]),
        apart=apart,
        factors=values,
        facts=first.facts,
        runs=tuple(group),
        results={name: Stat(tuple(found)) for name, found in results.items() if found},
        dense={name: statistics.fmean(found) for name, found in dense.items() if found},
    )


def _twin(run: Run, runs: Sequence[Run], reference: str | None) -> Run | None:
    """The finished dense run with the same seed and the same everything but TopK; in a study, the reference's with the
    same seed. If a callback ended one of the two early, both must have as many steps."""
    for other in runs:
        if not other.is_finished or other.seed != run.seed or not other.facts:
            continue
        if (run.ended_early or other.ended_early) and other.steps != run.steps:
            continue
        if reference is not None:
            if other.variant == reference:
                return other
        elif other.is_dense and _are_twins(run.settings, other.settings):
            return other
    return None


def _are_twins(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """A setting that only one of them knows, as versions differ, does not part them."""
    common = (name for name in one.keys() & other.keys() if not is_below(name, NOT_OF_A_TWIN))
    return all(one[name] == other[name] for name in common)


def _order(row: Row, factors: Sequence[str]) -> tuple[Any, ...]:
    others = tuple(_sortable(row.factors[name]) for name in factors)
    return row.facts["width"], not row.is_dense, others, row.facts["k"] or 0


def _sortable(value: Any) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, (int, float)):
        return (1, float(value), "")
    return (2, 0.0, _text(value))


def _on_front(row: Row, rows: Sequence[Row]) -> bool:
    points = [point for other in rows if (point := _point(other)) is not None]
    mine = _point(row)
    return mine is not None and mine in front(points)


def _point(row: Row) -> tuple[float, float] | None:
    loss, k = row.results.get("val_loss"), row.facts["k"]
    return None if loss is None or k is None else (k, loss.mean)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points for which no other is as low in one and lower in the other, in order of the first."""
    best, kept = math.inf, []
    for x, y in sorted(set(points)):
        if y < best:
            kept.append((x, y))
            best = y
    return kept


# --- words ------------------------------------------------------------------------------------------------------------


def k_text(facts: Mapping[str, Any]) -> str:
    """k in words: ``k 16``, ``k 16-64`` where sites differ, ``dense``."""
    if facts["dense"]:
        return "dense"
    low, high = min(facts["ks"]), max(facts["ks"])
    return f"k {low}" if low == high else f"k {low}-{high}"


def show(value: Any) -> str:
    """A setting's value as a person would type it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(show, value))}]"
    return str(value)
