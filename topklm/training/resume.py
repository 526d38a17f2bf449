"""Continuing a run: as the run it was, from its last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from .checkpoint_io import load_checkpoint
from .config import RunConfig

OVERLAYS = ("experiment", "debug", "hparams_search")  # they set anything anywhere
# What may change when a run continues: where it runs and where it reports, not what it computes.
FREE_TO_CHANGE = ("run", "resume", "logger", "trainer", "data.num_workers", "data.cache_dir", "hydra")


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


def step_to_continue(last: Path, config: RunConfig) -> int | None:
    """The step of the checkpoint ``last``, None if there is none.

    Raises:
        UserError: it is damaged, or of a run with another config.
    """
    if not last.exists():
        return None
    checkpoint = load_checkpoint(last)
    for section in ("model", "topk", "k_schedule", "optimizer", "lr_schedule", "training"):
        theirs, ours = checkpoint["topklm"]["config"][section], config.plain[section]
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"{last} does not fit this run: it has {section}.{name}={theirs.get(name)}, "
                    f"config.yaml says {ours.get(name)}. Put the run's own checkpoint in its place."
                )
    return checkpoint["global_step"]
