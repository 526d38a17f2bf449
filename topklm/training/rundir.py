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
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import filelock
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..files import atomic_path, disk_errors, write_json
from .loggers import CSVLog

PACKAGES = ("topklm", "torch", "lightning", "tokenizers", "numpy")
# What may change when a run continues: where it runs and where it reports, not what it computes.
OVERLAYS = ("experiment", "debug", "hparams_search")  # they set anything anywhere
FREE_TO_CHANGE = ("run", "resume", "logger", "trainer", "data.num_workers", "data.cache_dir", "hydra")


class RunDirectory:
    """One run on disk. Create or reopen it with ``claim``."""

    def __init__(self, path: Path) -> None:
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

    def write_summary(self, summary: dict[str, Any]) -> None:
        with disk_errors(self.summary, "Free some space; the checkpoints are untouched."):
            write_json(self.summary, summary)


def _step_of(line: str) -> float:
    """The step of a line of JSON; a line that a kill cut short counts as never logged."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return float("inf")


def stored_config(path: Path, given: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of the run in ``path``, with those of the command line's overrides that a continued run may change.

    Args:
        path: a run directory. given: the config composed from the command line. overrides: the command line's, such as
            ``topk.k=64``.

    Raises:
        UserError: no run directory, or an override that contradicts it.
    """
    try:
        stored = OmegaConf.load(path / "config.yaml")
    except FileNotFoundError as error:
        raise UserError(f"{path} is not a run directory: it has no config.yaml.") from error
    except Exception as error:
        raise UserError(f"{path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}.") from error
    assert isinstance(stored, DictConfig)
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0].split("@")[0].replace("/", ".")
        wanted, held = OmegaConf.select(given, key), OmegaConf.select(stored, key)
        if any(key == free or key.startswith(f"{free}.") for free in FREE_TO_CHANGE):
            if key.split(".")[0] not in ("run", "resume", "hydra"):
                OmegaConf.update(stored, key, wanted, merge=False)
        elif key in OVERLAYS:
            differing = next(_differences(given, stored), None)
            if differing is not None:
                _refuse(
                    f"{override} with {differing}={_short(OmegaConf.select(given, differing))}", path, stored, differing
                )
        elif wanted != held:
            _refuse(override, path, stored, key)
    return stored


def _refuse(what: str, path: Path, stored: DictConfig, key: str) -> NoReturn:
    raise UserError(
        f"{what} contradicts the run in {path}, which keeps its own config ({key} is "
        f"{_short(OmegaConf.select(stored, key))}): leave the override out, or start a new run."
    )


def _differences(given: DictConfig, stored: DictConfig) -> Iterator[str]:
    """Names of the settings in which two configs differ, those left out that may change."""
    ours, theirs = (dict(_leaves(OmegaConf.to_container(cfg))) for cfg in (given, stored))
    for key in sorted(ours.keys() | theirs.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_TO_CHANGE)
        if not free and ours.get(key) != theirs.get(key):
            yield key


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in node.items():
        if isinstance(child, dict) and child:
            yield from _leaves(child, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", child


def _short(value: Any) -> str:
    text = str(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def provenance(root: Path) -> dict[str, Any]:
    """Versions, git commit (None outside a repository) and command line, for the summary."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    git = (
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
        if shutil.which("git")
        else None
    )
    return {
        "versions": versions,
        "git_commit": git.stdout.strip() if git is not None and git.returncode == 0 else None,
        "command": " ".join(sys.argv),
    }
