"""The run directory: the unit of everything after training.

config.yaml     the resolved config: all that is needed to rebuild the model
tokenizer.json  the tokenizer
checkpoints/    last.ckpt and the kept ones
metrics.csv     a row per logged step
summary.json    the state of the run and its results
plots/          pictures made from the above
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import filelock
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..files import atomic_path, disk_errors, write_json
from .loggers import CSVLog


class RunDirectory:
    """One run on disk. Create or reopen it with ``claim``.

    Args:
        path: its directory. One below the working directory is kept as a relative path: shorter to read and to type.
    """

    def __init__(self, path: Path) -> None:
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        self.path = path
        self.config = path / "config.yaml"
        self.tokenizer = path / "tokenizer.json"
        self.checkpoints = path / "checkpoints"
        self.last = self.checkpoints / "last.ckpt"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.plots = path / "plots"
        self._lock = filelock.FileLock(path / ".lock")

    def claim(self, cfg: DictConfig, resume: bool) -> None:
        """Takes the directory for this process, and writes ``config.yaml`` into a new one.

        Raises:
            UserError: another process is at work in it, or a new run would write into an old one.
        """
        with disk_errors(self.path, "Free some space, or choose another place with hydra.run.dir=..."):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout as error:
                raise UserError(
                    f"{self.path} is in use by another process: wait for it, or start a run of its own."
                ) from error
            if resume:
                return
            if self.config.exists():
                raise UserError(
                    f"{self.path} already holds a run: continue it with run={self.path}, or choose another "
                    f"hydra.run.dir."
                )
            with atomic_path(self.config) as scratch:
                OmegaConf.save(cfg, scratch, resolve=True)

    def forget_after(self, step: int) -> None:
        """Drops what was logged after ``step``: a run that continues there will log it again."""
        CSVLog(self.metrics).truncate(step)
        for path in (self.path / "histograms.jsonl", self.path / "samples.jsonl"):
            if path.exists():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
                with atomic_path(path) as scratch:
                    scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def release(self) -> None:
        """Lets go of the directory, and removes it if nothing was written into it."""
        self._lock.release()
        if not self.config.exists():
            with contextlib.suppress(OSError):  # not empty, or gone
                self.path.rmdir()

    def read_summary(self) -> dict[str, Any]:
        """What ``summary.json`` says, nothing where there is none. Raises UserError if it cannot be read."""
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"{self.summary} is damaged: remove it, and the run can continue.") from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        with disk_errors(self.summary, "Free some space; the checkpoints are untouched."):
            write_json(self.summary, summary)


def _step_of(line: str) -> float:
    """The step of a line of JSON; a line that a kill cut short counts as never logged."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return float("inf")
