"""``metrics.csv``: a row per logged step, columns as metrics appear."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, run_argument
from ..files import atomic_path, disk_errors


class MetricsFile:
    """The file at ``path``, made with its first row.

    Attributes:
        columns: ``step`` and the metrics there are.

    Raises:
        UserError: there is such a file, and its first column is not ``step``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns = ["step"]
        self._last_begins: int | None = None  # byte at which the row begins that was appended last
        if path.exists():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                self.columns = next(csv.reader(file), self.columns)
            if self.columns[:1] != ["step"]:
                raise UserError(
                    f"{path} is damaged, its first column is not step: remove it, and the run can continue."
                )

    @property
    def last_step(self) -> int:
        """The step of the last row in the file, 0 where there is none."""
        return max((int(row["step"]) for row in self._rows() if row["step"].isdigit()), default=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes a row, ``step`` and metrics; new ones get a column.

        Raises:
            UserError: the disk is full, or nothing may be written there.
        """
        new = [name for name in row if name not in self.columns]
        with self._disk_errors():
            if new or not self.path.exists():
                self._rewrite([*self.columns, *new], self._rows())
            self._last_begins = self.path.stat().st_size
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    def amend(self, row: Mapping[str, Any]) -> None:
        """Writes a row in the place of the last one. Raises UserError as ``append`` does."""
        with self._disk_errors():
            if self._last_begins is None or any(name not in self.columns for name in row):
                self._rewrite(self.columns, self._rows()[:-1])
            else:
                os.truncate(self.path, self._last_begins)
        self.append(row)

    def last_row(self) -> dict[str, str]:
        """``step`` and the metrics of the last row; empty where there is none."""
        rows = self._rows()
        return {name: text for name, text in rows[-1].items() if text} if rows else {}

    def truncate(self, step: int) -> None:
        """Drops rows after ``step``: a continued run will write them again."""
        if not self.path.exists():
            return
        self._rewrite(self.columns, [row for row in self._rows() if row["step"].isdigit() and int(row["step"]) <= step])

    def last_values(self) -> dict[str, float]:
        """The last value of every metric in the file."""
        rows = self._rows()
        return {name: float(text) for row in rows for name, text in row.items() if name != "step" and text}

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self.path, f"Free some space, then continue with {run_argument(self.path.parent)}")

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.columns = columns
        with atomic_path(self.path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads a ``metrics.csv``: for every metric, the steps at which it was logged and its values."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name != "step" and text:
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(text))
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in found.items()}
