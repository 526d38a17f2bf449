"""Run directories as a report sees them: settings, state and results of each, whatever became of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from ..errors import UserError, run_argument
from ..training.derived import derived
from ..training.flat import flat
from ..training.metrics_file import read_metrics
from ..training.results import results
from ..training.rundir import RunDirectory
from ..training.sections import TrainingConfig

FINISHED = "finished"


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        path: the directory. status: ``finished``, ``running``, ``interrupted``, ``failed``, ``killed`` (it says
            running, but no process is at work in it) or ``unreadable``. reason: why, where there is something to say.
        plain: its config; empty if it has none, since its settings were refused. summary: of ``summary.json``.
        variant: the name of what it stands for, in a study.
    """

    path: Path
    status: str
    reason: str | None
    plain: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    variant: str | None = None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings by their full names."""
        return flat(self.plain)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What its settings come to (see ``derived``); empty where they are not valid."""
        try:
            return derived(self.plain)
        except (ValueError, TypeError, KeyError):
            return {}

    @property
    def seed(self) -> int | None:
        return self.plain.get("seed")

    @property
    def is_finished(self) -> bool:
        return self.status == FINISHED

    @property
    def ended_early(self) -> bool:
        """Whether it is finished since a callback, such as Lightning's EarlyStopping, ended its training."""
        return self.is_finished and self.reason is not None

    @property
    def is_dense(self) -> bool:
        return bool(self.facts.get("dense"))

    @cached_property
    def result(self) -> dict[str, float | None]:
        """What it is compared by, None where not measured."""
        return results(self.summary)

    @property
    def steps(self) -> tuple[int, int | None]:
        """Steps taken, as far as they are logged, and steps of the whole run."""
        done = max((int(steps[-1]) for steps, _ in self.curves.values()), default=0)
        training = self.plain.get("training", {})
        total = training.get("steps")
        if training.get("tokens") is not None:
            total = TrainingConfig(tokens=training["tokens"], batch_tokens=training["batch_tokens"]).steps
        return max(done, self.summary.get("steps") or 0), total

    @cached_property
    def curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and values of every logged metric, whatever is whole of ``metrics.csv``."""
        try:
            return read_metrics(self.path / "metrics.csv")
        except (OSError, ValueError, TypeError, KeyError):
            return {}


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders: each folder itself if it is one, and the folders in it that are.

    Raises:
        UserError: a folder is missing, or none of them holds a run.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"sweep={folder} is no folder: give the directory of a sweep, or of runs.")
        for path in (folder, *sorted(folder.iterdir())):
            if (path / "config.yaml").is_file() or (path / "summary.json").is_file():
                found.setdefault(path.resolve(), read_run(path))
    if not found:
        places = ", ".join(map(str, folders))
        raise UserError(f"There is no run in {places}: give the directory of a sweep, or of runs.")
    return list(found.values())


def read_run(path: Path, variant: str | None = None) -> Run:
    """The run in ``path``. What cannot be read is told by its status and reason."""
    try:
        summary = _read_json(path / "summary.json")
        config = path / "config.yaml"
        plain = OmegaConf.to_container(OmegaConf.load(config)) if config.exists() else {}
        if not isinstance(plain, dict) or not isinstance(summary, dict):
            raise ValueError("config.yaml or summary.json does not hold settings")
    except Exception as error:
        return Run(path, "unreadable", str(error).partition("\n")[0], variant=variant)
    status, reason = summary.get("status", "running"), summary.get("reason")
    if status == "running" and not RunDirectory(path).is_in_use():
        status, reason = "killed", f"no process is at work on it: continue with {run_argument(path)}"
    return Run(path, status, reason, {str(name): node for name, node in plain.items()}, summary, variant)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
