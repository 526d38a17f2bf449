"""Studies: variants of one recipe, each with several seeds, trained one after another in processes of their own and
compared with a dense reference."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..cli import CONF, choices, register_resolvers
from ..errors import Interrupted, UserError
from ..training.again import Standing, standing
from ..training.config import RunConfig
from ..training.flat import flat
from ..training.init_from import with_origin
from ..training.rundir import RunDirectory
from .compare import compare
from .runs import Run, read_run
from .write import write_report

TRAIN = CONF.parent / "train.py"
DONE = "finished already"
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
SETTINGS = ("study", "dir", "overrides", "only", "seeds")
OF_A_STUDY = ("name", "base", "seeds", "reference", "variants")


@dataclass(frozen=True)
class Job:
    """A variant with a seed: its run directory and the overrides of ``train.py`` that make it."""

    variant: str
    seed: int
    path: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Study:
    """A study. ``jobs``: those asked for, in the order of training, all variants of a seed before the next seed;
    ``variants``: the overrides of each, asked for or not; ``reference``: the dense one, None for none."""

    name: str
    folder: Path
    jobs: tuple[Job, ...]
    variants: Mapping[str, tuple[str, ...]]
    reference: str | None

    @classmethod
    def from_hydra(cls, cfg: DictConfig) -> Study:
        """Reads ``conf/study.yaml`` with a choice of ``conf/study/``. Raises UserError at the first mistake."""
        if "study" not in cfg:
            raise UserError(f"study=NAME is missing: choose from {choices('study')}.")
        plain: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        for name in plain:
            _check(name in SETTINGS, name, plain[name], f"a setting of a study: {', '.join(SETTINGS)}")
        study = plain["study"]
        for name in OF_A_STUDY:
            _check(name in study, "study", plain["study"].get("name"), f"a file in conf/study that sets {name}")
        variants = study["variants"]
        _check(isinstance(variants, dict) and bool(variants), "study.variants", variants, "a name for each variant")
        for name in variants:
            fits = isinstance(name, str) and "/" not in name
            _check(fits, "study.variants", name, "each variant a name in words, without a slash (quote a number)")
        for name, overrides in {"base": study["base"], **variants}.items():
            _check(_are(overrides, str), f"study.variants.{name}", overrides, "a list of overrides")
        _check(_are(plain["overrides"], str), "overrides", plain["overrides"], 'a list such as ["trainer=cpu"]')
        only = [plain["only"]] if isinstance(plain["only"], str) else plain["only"]
        only = list(variants) if only is None else only
        unknown = [name for name in only if name not in variants] if _are(only, str) else [only]
        _check(bool(only) and not unknown, "only", unknown, f"some of {', '.join(variants)}")
        seeds = study["seeds"] if plain["seeds"] is None else plain["seeds"]
        seeds = [seeds] if isinstance(seeds, int) else seeds
        _check(_are(seeds, int) and bool(seeds), "seeds", seeds, "a list of whole numbers")
        reference = study["reference"]
        _check(reference is None or reference in variants, "study.reference", reference, "a variant, or null")
        folder = Path(plain["dir"])
        whole = {name: (*study["base"], *plain["overrides"], *variants[name]) for name in variants}
        jobs = tuple(
            _job(folder, name, seed, whole[name]) for seed in dict.fromkeys(seeds) for name in whole if name in only
        )
        return cls(str(study["name"]), folder, jobs, whole, reference)

    def begun(self) -> Iterator[Job]:
        """The jobs that have a summary, of all variants and seeds, whoever asked for them."""
        for path in sorted(self.folder.glob("*/summary.json")):
            name = re.fullmatch(r"(.+)_(0|[1-9]\d*)", path.parent.name)
            if name and name[1] in self.variants:
                yield _job(self.folder, name[1], int(name[2]), self.variants[name[1]])


def _job(folder: Path, variant: str, seed: int, overrides: Sequence[str]) -> Job:
    return Job(variant, seed, folder / f"{variant}_{seed}", (*overrides, f"seed={seed}"))


def _check(ok: bool, name: str, value: Any, wanted: str) -> None:
    if not ok:
        raise UserError(f"{name}={value}: give {wanted}.")


def _are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


# --- running ----------------------------------------------------------------------------------------------------------


def run_study(study: Study, console: Console) -> None:
    """Trains what is not finished, tells of each job in a line, and writes the report.

    All jobs' settings are checked before the first is trained.

    Raises:
        UserError: a setting is wrong, or jobs failed. Interrupted: a signal stopped it; the job at hand ends as a run
        does, with a checkpoint.
    """
    left: list[Job] = []
    for job in study.jobs:
        if _standing(job, to_come=left) is not Standing.FINISHED:
            left.append(job)
    console.print(f"{len(study.jobs)} jobs in {study.folder}: {len(study.jobs) - len(left)} finished already", **PLAIN)
    seconds = [known for job in study.jobs if job not in left and (known := _seconds(job.path)) is not None]
    failed: list[str] = []
    try:
        for number, job in enumerate(left, start=1):
            began = time.monotonic()
            reason = _attempt(job, study.folder / "logs")
            took = time.monotonic() - began
            if reason is None:
                seconds.append(took)
            elif RunDirectory(job.path).is_in_use():
                reason = "another process is at work on it"
            elif reason != DONE:
                failed.append(f"{job.name}: {reason}")
            console.print(
                _line(f"[{number}/{len(left)}] {job.name}", job, reason, took, seconds, len(left) - number), **PLAIN
            )
    finally:
        _report(study, console)
    if failed:
        raise UserError(f"{len(failed)} of the study's jobs failed; the same command tries them again. {failed[0]}")


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def _standing(job: Job, to_come: Sequence[Job] = ()) -> Standing:
    """How far a job is, after a check of its settings; not begun if it starts from one of those ``to_come``. Raises
    UserError for a mistake in them, or where its directory holds another run."""
    run = RunDirectory(job.path)
    try:
        cfg = _composed(job.overrides)
        if cfg.init_from and any(Path(cfg.init_from).is_relative_to(other.path) for other in to_come):
            return Standing.NEW
        cfg = with_origin(cfg, job.overrides, run.path)
        RunConfig.from_hydra(cfg)
    except Exception as error:
        raise UserError(f"study.variants.{job.variant}: {str(error).splitlines()[0]}") from error
    return standing(run, cfg, lambda: flat(_composed(())))


def _attempt(job: Job, logs: Path) -> str | None:
    """Trains a job unless another process has done so meanwhile. Why it was not finished here, None if it was."""
    try:
        state = _standing(job)
        if state is Standing.FINISHED:
            return DONE
        reason = _train(job, state, logs)
        return DONE if reason is not None and _standing(job) is Standing.FINISHED else reason
    except UserError as error:
        return str(error)


def _train(job: Job, state: Standing, logs: Path) -> str | None:
    """Trains a job in a process of its own, what it prints going to ``logs``. Why it failed, None if it did not."""
    place = f"run={job.path}" if state is Standing.BEGUN else f"hydra.run.dir={job.path}"
    logs.mkdir(parents=True, exist_ok=True)
    with open(logs / f"{job.name}.txt", "a", encoding="utf-8") as log:
        # In a session of its own, so that Ctrl-C reaches it once, from here: twice ends it without a checkpoint.
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), place, *job.overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate()
        except KeyboardInterrupt:
            process.terminate()
            process.communicate()
            raise Interrupted(f"Stopped in {job.name}. The same command goes on with the study.") from None
        log.write(errors)
    if process.returncode == 0:
        return None
    last = errors.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
    return last[0].removeprefix("Error: ")


def _line(head: str, job: Job, reason: str | None, took: float, seconds: Sequence[float], left: int) -> str:
    if reason is not None:
        what = reason
    else:
        loss = read_run(job.path).result["val_loss"]
        what = f"finished in {_time(took)}" + (f", validation loss {loss:.4f}" if loss is not None else "")
    rest = f", about {_time(left * sum(seconds) / len(seconds))} left" if left and seconds else ""
    return f"{head}: {what.rstrip('.')}{rest}"


def _seconds(path: Path) -> float | None:
    """About how long a finished run took to train."""
    result = read_run(path).result
    tokens, rate = result["tokens"], result["tokens_per_second"]
    return tokens / rate if tokens and rate else None


def _time(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


def _report(study: Study, console: Console) -> None:
    """Reports on all of the study that there is, and not only on what was asked for this time."""
    runs: list[Run] = []
    for job in study.begun():
        try:
            _standing(job)
            runs.append(read_run(job.path, job.variant))
        except UserError as error:
            console.print(f"{job.name} is left out of the report: {error}", **PLAIN)
    if runs:
        write_report(compare(runs, list(study.variants), study.reference), study.name, study.folder / "report", console)
