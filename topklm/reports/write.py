"""``write_report``: from folders of runs to tables, pictures and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from rich.console import Console

from ..files import atomic_path, disk_errors
from .compare import Comparison, compare
from .page import page
from .plots import PICTURES, draw, save
from .runs import Run, find_runs
from .table import markdown, results_grid, rich_table, unfinished_grid, write_csv

LOG_WIDTH = 140  # of tables where there is no terminal
ADVICE = "Free some space, or choose another place with out=..."


def report_sweep(folders: Sequence[Path], out: Path | None, console: Console) -> Path:
    """Compares the runs in ``folders``, prints the table, and writes the report.

    Args:
        folders: sweeps or single runs. out: where to write; None takes ``report/`` in the first folder.

    Returns:
        The folder of ``report.html``, ``report.md``, ``report.csv`` and the pictures.

    Raises:
        UserError: there is no run, or the report cannot be written.
    """
    runs = find_runs(folders)
    target = out or folders[0] / "report"
    write_report(compare(runs), ", ".join(folder.name or str(folder) for folder in folders), target, console)
    return target


def write_report(comparison: Comparison, title: str, target: Path, console: Console) -> None:
    """Prints the tables of a comparison, and writes it into ``target`` as CSV, Markdown, PNG and HTML."""
    results, unfinished = results_grid(comparison), unfinished_grid(comparison)
    lines = [state_line(comparison.runs)]
    if not any(row.is_dense and row.finished for row in comparison.rows):
        lines.append("No dense twin is finished: run the same with topk=none to see what sparsity costs.")
    figures = draw(comparison)
    try:
        with disk_errors(target, ADVICE):
            target.mkdir(parents=True, exist_ok=True)
            write_csv(comparison, target / "report.csv")
            save(figures, target)
            for name in PICTURES:
                if name not in figures:  # of an earlier report
                    (target / f"{name}.png").unlink(missing_ok=True)
            texts = {
                "report.md": _markdown(title, lines, comparison, list(figures)),
                "report.html": page(title, lines, results, unfinished, figures, comparison.shared),
            }
            for name, text in texts.items():
                with atomic_path(target / name) as scratch:
                    scratch.write_text(text, encoding="utf-8")
    finally:
        for figure in figures.values():
            plt.close(figure)
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    console.print()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if results.rows:
        console.print(rich_table(results, title))
        console.print(results.note, markup=False, highlight=False)
    if unfinished.rows:
        console.print(rich_table(unfinished, "Not finished, or ended early"))
    console.print(f"report           {target / 'report.html'}", markup=False, highlight=False, soft_wrap=True)


def state_line(runs: Sequence[Run]) -> str:
    """How many runs there are in which state."""
    counts = Counter(run.status for run in runs)
    states = ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda item: -item[1]))
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {states}."


def _markdown(title: str, lines: Sequence[str], comparison: Comparison, pictures: Sequence[str]) -> str:
    parts = [f"# {title}", *lines]
    results, unfinished = results_grid(comparison), unfinished_grid(comparison)
    if results.rows:
        parts += [markdown(results).rstrip(), results.note.replace("*", "\\*")]
    parts += [f"![{name}]({name}.png)" for name in pictures]
    if unfinished.rows:
        parts += ["## Not finished, or ended early", markdown(unfinished).rstrip()]
    return "\n\n".join(parts) + "\n"
