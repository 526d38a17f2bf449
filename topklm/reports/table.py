"""The table of a report, once for all its forms: terminal, Markdown, HTML and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..files import atomic_path
from .compare import RESULTS, Comparison, Row, Stat, k_text, short_names, show
from .runs import Run

MAX_FACTORS = 4  # that have a column each
WINDOWS = "dead over"  # head of a column


@dataclass(frozen=True)
class Cell:
    """``text`` to read, ``order`` to sort by; numbers stand to the right."""

    text: str
    order: float | str | None
    is_number: bool = True


@dataclass(frozen=True)
class Grid:
    """A table: ``heads`` of the columns and, per row, a cell for each. ``note``: what the columns mean."""

    heads: list[str]
    rows: list[list[Cell]]
    note: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [any(cells[i].is_number for cells in self.rows) for i in range(len(self.heads))]


def results_grid(comparison: Comparison) -> Grid:
    """A row per set of settings, with the results of its seeds. Columns in which nothing is known are left out."""
    columns = [*_setting_columns(comparison), *_result_columns(comparison)]
    rows = [[cell(row) for _, cell in columns] for row in comparison.rows]
    known = [i for i in range(len(columns)) if any(cells[i].text not in ("", "-") for cells in rows)]
    return Grid([columns[i][0] for i in known], [[cells[i] for i in known] for cells in rows], _note(comparison))


def _note(comparison: Comparison) -> str:
    windows, last = comparison.dead_windows, f'the last tokens, as many as "{WINDOWS}" says'
    if len(windows) == 1:
        last = f"the last {next(iter(windows)):,} tokens"
    dead = f"dead: share of neurons that fired on none of {last}, in the worst layer. " if windows else ""
    return (
        "n: finished seeds, over which all figures are means, with ± the standard deviation of loss, bpb and cost (of "
        "the others: report.csv). loss: validation at the final k, nats per token; bpb: bits per byte. cost: of "
        f"sparsity, loss over that of the dense twin of the same seed, minus 1. {dead}energy: share that TopK keeps in "
        "its last layer. "
        "*: no other row has both a k as low and a loss as low."
    )


def unfinished_grid(comparison: Comparison) -> Grid:
    """A row per run that is not finished or ended early, with how far it is and why it ended."""
    rows = [_unfinished_row(run) for run in comparison.unfinished]
    return Grid(["run", "state", "steps", "validation loss", "reason"], rows)


def _unfinished_row(run: Run) -> list[Cell]:
    done, total = run.steps
    loss = run.result["val_loss"]
    return [
        _word(run.path.name),
        _word("ended early" if run.ended_early else run.status),
        Cell(f"{done:,}" + (f" of {total:,}" if total else ""), done),
        Cell("-" if loss is None else f"{loss:.4f}", loss),
        _word(run.reason or ""),
    ]


def _setting_columns(comparison: Comparison) -> list[tuple[str, Callable[[Row], Cell]]]:
    short = short_names(comparison.factors)

    def factor(name: str) -> Callable[[Row], Cell]:
        return lambda row: _value(row.factors[name])

    columns: list[tuple[str, Callable[[Row], Cell]]] = []
    if comparison.is_study:
        columns.append(("variant", lambda row: _word(row.label)))
    one_width = len({row.facts["width"] for row in comparison.rows}) == 1
    if not comparison.is_study or not one_width:
        columns.append(("width", lambda row: _value(row.facts["width"])))
    columns += [
        ("k", lambda row: Cell(k_text(row.facts).removeprefix("k "), row.facts["k"] or 0)),
        ("k/d", lambda row: _number(row.facts["k_over_d"], "{:.3g}")),
    ]
    if comparison.is_study:  # whose variants have a name each
        return columns
    if len(comparison.factors) > MAX_FACTORS:
        return [*columns, ("apart by", lambda row: _word(" ".join(row.apart) or "-"))]
    return columns + [(short[name], factor(name)) for name in comparison.factors]


def _result_columns(comparison: Comparison) -> list[tuple[str, Callable[[Row], Cell]]]:
    window = (WINDOWS, lambda row: _stat(row, "dead_window_tokens", "{:,.0f}"))
    return [
        ("n", _n),
        ("params", lambda row: _stat(row, "params", "{:,.0f}")),
        ("loss", lambda row: _stat(row, "val_loss", "{:.4f}", "{:.4f}", mark="*" if row.on_front else "")),
        ("bpb", lambda row: _stat(row, "val_bpb", "{:.4f}", "{:.4f}")),
        ("cost", lambda row: _stat(row, "cost", "{:+.2%}", "{:.2%}")),
        ("dead", lambda row: _stat(row, "dead_worst", "{:.1%}")),
        *([window] if len(comparison.dead_windows) > 1 else []),
        ("energy", lambda row: _stat(row, "energy_kept_last", "{:.1%}")),
        ("tokens/s", lambda row: _stat(row, "tokens_per_second", "{:,.0f}")),
    ]


def _n(row: Row) -> Cell:
    done, all_seeds = len({run.seed for run in row.finished}), len({run.seed for run in row.runs})
    return Cell(f"{done}" if done == all_seeds else f"{done} of {all_seeds}", done)


def _stat(row: Row, name: str, pattern: str, spread: str | None = None, mark: str = "") -> Cell:
    stat = row.results.get(name)
    if stat is None:
        return Cell("-", None)
    text = pattern.format(stat.mean) + mark
    if spread and stat.std is not None:
        text += f" ± {spread.format(stat.std)}"
    if name == "cost" and stat.n < row.results["val_loss"].n:
        text += f" (n {stat.n})"
    return Cell(text, stat.mean)


def _number(value: float | None, pattern: str) -> Cell:
    return Cell("-" if value is None else pattern.format(value), value)


def _value(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(show(value), value)
    return _word(show(value))


def _word(text: str) -> Cell:
    return Cell(text, text, is_number=False)


# --- forms ------------------------------------------------------------------------------------------------------------


def rich_table(grid: Grid, title: str) -> Table:
    """For a terminal."""
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for head, numeric in zip(grid.heads, grid.numeric, strict=True):
        table.add_column(escape(head), justify="right" if numeric else "left", overflow="fold")
    for cells in grid.rows:
        table.add_row(*(escape(cell.text) for cell in cells))
    return table


def markdown(grid: Grid) -> str:
    """As Markdown."""
    lines = [grid.heads, ["--:" if number else "---" for number in grid.numeric]]
    lines += [[cell.text for cell in cells] for cells in grid.rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines) + "\n"


def write_csv(comparison: Comparison, path: Path) -> None:
    """Writes every number unrounded: a row per set of settings, and mean, std, min, max and n of each result."""
    settings = ["label", "width", "k", "k_over_d", *comparison.factors]
    results = [f"{name}_{part}" for name in RESULTS for part in ("mean", "std", "min", "max", "n")]
    with atomic_path(path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*settings, "seeds", *results, "on_front", "runs"])
        for row in comparison.rows:
            facts = [row.label, row.facts["width"], row.facts["k"], row.facts["k_over_d"]]
            seeds = " ".join(str(seed) for seed in sorted({run.seed or 0 for run in row.finished}))
            numbers = [number for name in RESULTS for number in _numbers(row.results.get(name))]
            paths = " ".join(run.path.name for run in row.runs)
            factors = [show(row.factors[name]) for name in comparison.factors]
            writer.writerow([*facts, *factors, seeds, *numbers, row.on_front, paths])


def _numbers(stat: Stat | None) -> Sequence[float | str | None]:
    if stat is None:
        return ["", "", "", "", 0]
    return [stat.mean, stat.std, min(stat.values), max(stat.values), stat.n]
