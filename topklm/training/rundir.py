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
import shutil
from pathlib import Path
from typing import Any

import filelock
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError, run_argument
from ..files import atomic_path, disk_errors, write_json
from .metrics_file import MetricsFile

LOG = "train.log"  # Hydra's, who may have written a line before us
PLACE = "Free some space, or choose another place with hydra.run.dir=..."


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
        self._made_here = False

    def claim(self, resume: bool) -> None:
        """Takes the directory for this process.

        Raises:
            UserError: another process is at work in it, or a new run would write over an old one. One that ended before
            its first step counts as none.
        """
        with disk_errors(self.path, PLACE):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout as error:
                raise UserError(
                    f"{self.path} is in use by another process: wait for it, or start a run of its own."
                ) from error
            self._made_here = not resume and {path.name for path in self.path.iterdir()} <= {LOG, ".lock"}
            if not resume and (self.config.exists() or self.summary.exists()):
                if self.has_steps or self.read_summary().get("status") not in ("failed", "interrupted"):
                    raise UserError(
                        f"{self.path} already holds a run: continue it with {run_argument(self.path)}, or choose "
                        f"another hydra.run.dir."
                    )
                self.config.unlink(missing_ok=True)
                self.summary.unlink()

    @property
    def is_claimed(self) -> bool:
        return self._lock.is_locked

    def is_in_use(self) -> bool:
        """Whether a process is at work in it, as far as can be told: one in a place where nothing may be written is
        taken to be."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with self._lock.acquire(blocking=False):
                return False
        except (filelock.Timeout, OSError):
            return True

    @property
    def has_steps(self) -> bool:
        """Whether a run took a step here."""
        logged = MetricsFile(self.metrics).last_step
        return self.checkpoints.exists() or logged > 0 or bool(self.read_summary().get("steps"))

    def write_config(self, cfg: DictConfig) -> None:
        with disk_errors(self.config, PLACE), atomic_path(self.config) as scratch:
            OmegaConf.save(cfg, scratch, resolve=True)

    def forget_after(self, step: int) -> None:
        """Drops what was logged after ``step``: a run that continues there will log it again."""
        MetricsFile(self.metrics).truncate(step)
        for path in (self.path / "histograms.jsonl", self.path / "samples.jsonl"):
            if path.exists():
                kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
                with atomic_path(path) as scratch:
                    scratch.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def discard(self) -> None:
        """Removes the directory if this process made all that is in it and no step was taken."""
        if self._made_here and not self.has_steps:
            shutil.rmtree(self.path, ignore_errors=True)

    def release(self) -> None:
        """Lets go of the directory, and removes it if nothing is in it."""
        self._lock.release()
        with contextlib.suppress(OSError):  # not empty, or gone
            self.path.rmdir()

    def read_summary(self) -> dict[str, Any]:
        """What ``summary.json`` says, nothing where there is none. Raises UserError if it cannot be read."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            summary = None
        if not isinstance(summary, dict):
            raise UserError(f"{self.summary} is damaged: remove it, and the run can continue.")
        return summary

    def write_summary(self, summary: dict[str, Any]) -> None:
        with disk_errors(self.summary, "Free some space; the checkpoints are untouched."):
            write_json(self.summary, summary)


def _step_of(line: str) -> float:
    """The step of a line of JSON; one that a kill cut short, or that is none of ours, counts as never logged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")
