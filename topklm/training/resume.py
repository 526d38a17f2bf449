"""Continuing a run: as the run it was, from its last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from .checkpoint_io import load_checkpoint
from .config import RunConfig
from .flat import flat, is_below
from .hardware import resolve_device, resolve_precision
from .stored import OVERLAYS, cause, key_of, load_config, short

# What may change when a run continues: where it runs and where it reports, not what it computes.
TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "compile")
DATA = ("num_workers", "writers", "cache_dir", "cache_gb", "on_error")
COMMAND = ("run", "resume", "hydra")
FREE_TO_CHANGE = (*COMMAND, "logger", *(f"trainer.{name}" for name in TRAINER), *(f"data.{name}" for name in DATA))


def stored_config(path: Path, given: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The config of the run in ``path``, with those of the command line's overrides that a continued run may change.
    A tokenizer that came from a file is read from the run's own copy of it.

    Of a choice such as ``trainer=cpu`` it takes what may change and leaves the rest. ``trainer.precision`` may say what
    ``auto`` meant where the run began, to which ``step_to_continue`` holds it.

    Args:
        path: a run directory. given: the config composed from the command line. overrides: the command line's, such as
            ``topk.k=64``.

    Raises:
        UserError: no run directory, or an override that contradicts it.
    """
    stored = load_config(path, map(str, given))
    ours, theirs = flat(given), flat(stored)
    for name in ours.keys() - theirs.keys():  # the run was made by a version that did not have it
        if is_below(name, FREE_TO_CHANGE) and not is_below(name, COMMAND):
            OmegaConf.update(stored, name, ours[name], force_add=True)
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
            wanted, held = ours.get(name), theirs.get(name)
            if is_below(name, FREE_TO_CHANGE):
                if key not in OVERLAYS and name in ours:
                    OmegaConf.update(stored, name, wanted, merge=False)
            elif name == key == "trainer.precision" and held == "auto":
                OmegaConf.update(stored, name, wanted)
            elif wanted != held and (name == key or not is_below(name, ("trainer",))):
                _refuse(cause(override, name, wanted), path, name, held)
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
        UserError: it is damaged, of a run with another config, or was trained in another precision than would be used
        here.
    """
    if not last.exists():
        return None
    checkpoint = load_checkpoint(last)
    for section in ("model", "topk", "k_schedule", "optimizer", "lr_schedule", "training"):
        theirs, ours = checkpoint["topklm"]["config"].get(section, {}), config.plain[section]
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{last} does not fit this run: it has {section}.{name}={theirs.get(name)}, "
                    f"config.yaml says {ours.get(name)}. Put the run's own checkpoint in its place."
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
