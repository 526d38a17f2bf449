"""Continuing a run: as the run it was, from its last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from .checkpoint_files import load_checkpoint
from .config import RunConfig
from .flat import flat, is_below
from .hardware import resolve_device, resolve_precision
from .sections import DataConfig
from .stored import OVERLAYS, cause, key_of, load_config, short

# What may change when a run continues: where it runs and where it reports, not what it computes.
TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "compile", "activation_checkpointing")
DATA = ("num_workers", "writers", "cache_dir", "cache_gb", "on_error", "source.on_error")
COMMAND = ("run", "resume", "hydra")
FREE_TO_CHANGE = (
    *COMMAND,
    "logger",
    "training.micro_batch_tokens",
    *(f"trainer.{name}" for name in TRAINER),
    *(f"data.{name}" for name in DATA),
)
OF_DATA = tuple(f"data.{field.name}" for field in dataclasses.fields(DataConfig))  # the rest is the source's
Defaults = Callable[[], Mapping[str, Any]]


def stored_config(path: Path, given: DictConfig, overrides: Sequence[str], defaults: Defaults) -> DictConfig:
    """The config of the run in ``path``, with those of the command line's overrides that a continued run may change.
    A tokenizer that came from a file is read from the run's own copy of it. A setting that the version did not have
    that made the run has its default.

    Of a choice such as ``trainer=cpu`` it takes what may change and leaves the rest. ``trainer.precision`` may say what
    ``auto`` meant where the run began, to which ``step_to_continue`` holds it.

    Args:
        path: a run directory. given: the config composed from the command line. overrides: the command line's, such as
            ``topk.k=64``. defaults: the settings of a run without overrides, by their full names; asked for only where
            the run lacks settings of ``given``.

    Raises:
        UserError: no run directory, or an override that contradicts it.
    """
    stored, usual = _completed(path, given, defaults)
    ours, theirs = flat(given), flat(stored)
    for override in overrides:
        key = key_of(override)
        if is_below(key, COMMAND):
            continue
        if is_below(key, FREE_TO_CHANGE):
            for name in (key, *(n for n in theirs if key == "data.on_error" and n.endswith(".on_error"))):
                OmegaConf.update(stored, name, OmegaConf.select(given, key), merge=False, force_add=True)
            continue
        for name in sorted(ours.keys() | theirs.keys()):
            if key not in OVERLAYS and not is_below(name, (key,)):
                continue
            wanted, held = ours.get(name), theirs.get(name, usual.get(name))
            if is_below(name, FREE_TO_CHANGE):
                if key not in OVERLAYS and name in ours:
                    OmegaConf.update(stored, name, wanted, merge=False)
            elif name == key == "trainer.precision" and held == "auto":
                OmegaConf.update(stored, name, wanted)
            elif wanted != held and (name == key or not is_below(name, ("trainer",))):
                _refuse(cause(override, name, wanted), path, name, held)
    return _with_own_tokenizer(stored, path)


def config_to_go_on(path: Path, given: DictConfig, defaults: Defaults) -> DictConfig:
    """The config of the run in ``path``, which runs and reports where ``given`` says. That the two compute the same is
    for ``again.standing`` to check; the rest is as ``stored_config`` has it."""
    stored, _ = _completed(path, given, defaults)
    for name, wanted in flat(given).items():
        if _may_change(name):
            OmegaConf.update(stored, name, wanted, merge=False, force_add=True)
    return _with_own_tokenizer(stored, path)


def _completed(path: Path, given: DictConfig, defaults: Defaults) -> tuple[DictConfig, Mapping[str, Any]]:
    """The config of the run in ``path``, with what the version that made it did not have, and the defaults, if they
    were needed. Callbacks and sources stay as they are: their classes know what a missing setting is."""
    sections = [str(name) for name, node in given.items() if isinstance(node, DictConfig)]
    stored = load_config(path, [*sections, "seed"])
    ours = flat(given)
    lacking = sorted(ours.keys() - flat(stored).keys())
    usual = defaults() if lacking else {}
    for name in lacking:
        if _may_change(name):
            OmegaConf.update(stored, name, ours[name], force_add=True)
        elif name in usual and (name in OF_DATA or not is_below(name, ("callbacks", "data"))):
            OmegaConf.update(stored, name, usual[name], force_add=True)
    return stored, usual


def _may_change(name: str) -> bool:
    return is_below(name, FREE_TO_CHANGE) and not is_below(name, COMMAND)


def _with_own_tokenizer(stored: DictConfig, path: Path) -> DictConfig:
    if stored.tokenizer.name == "file" and (path / "tokenizer.json").exists():
        stored.tokenizer.path = str(path / "tokenizer.json")
    return stored


def _refuse(what: str, path: Path, name: str, held: Any) -> NoReturn:
    raise UserError(
        f"{what} contradicts the run in {path}, which keeps its own config ({name} is {short(held)}): leave the "
        f"override out, or start a new run."
    )


def step_to_continue(last: Path, config: RunConfig) -> int | None:
    """The step of the checkpoint ``last``, None if there is none.

    Raises:
        UserError: it is damaged, or missing where others are kept, or of a run with another config (a setting that one
            of the two versions did not have parts nothing), or was trained in another precision than would be used
            here.
    """
    if not last.exists():
        kept = sorted(last.parent.glob("step_*.ckpt"))
        if kept:
            raise UserError(f"{last} is missing, but {kept[-1].name} is there: make a copy of it with that name.")
        return None
    checkpoint = load_checkpoint(last)
    for section in ("model", "topk", "k_schedule", "optimizer", "lr_schedule", "training"):
        theirs, ours = checkpoint["topklm"]["config"].get(section, {}), config.plain[section]
        for name in sorted(theirs.keys() & ours.keys()):
            if theirs[name] != ours[name] and not _may_change(f"{section}.{name}"):
                raise UserError(
                    f"{last} does not fit this run: it has {section}.{name}={theirs[name]}, "
                    f"config.yaml says {ours[name]}. Put the run's own checkpoint in its place."
                )
    asked = config.trainer.precision
    here = resolve_precision(asked, resolve_device(config.trainer.accelerator))
    used = checkpoint["topklm"].get("precision", here)
    if used != here:
        raise UserError(
            f"{last} was trained in {used}, but trainer.precision={asked} is {here} on this device: continue in the "
            f"same precision with trainer.precision={'32' if used == '32-true' else used}."
        )
    return checkpoint["global_step"]
