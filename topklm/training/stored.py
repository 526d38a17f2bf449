"""The config that a run directory holds, and how the command line's overrides compare with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..errors import UserError

OVERLAYS = ("experiment", "debug", "hparams_search")  # they set anything anywhere


def load_config(path: Path, sections: Iterable[str]) -> DictConfig:
    """The config in the run directory ``path``, which must have these sections.

    Raises:
        UserError: there is none, it cannot be read, or lacks a section.
    """
    file = path / "config.yaml"
    try:
        stored = OmegaConf.load(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is not a run directory: it has no config.yaml.") from error
    except Exception as error:
        raise UserError(f"{file} cannot be read: {str(error).splitlines()[0]}.") from error
    lacking = [name for name in sections if not isinstance(stored, DictConfig) or name not in stored]
    if lacking:
        raise UserError(f"{file} is not the config of a run: it has no {lacking[0]}. Put the run's own in its place.")
    assert isinstance(stored, DictConfig)
    return stored


def key_of(override: str) -> str:
    """The full name of what an override such as ``+topk.k=64`` or ``/model@here=tiny`` sets."""
    return override.lstrip("+~").split("=", 1)[0].split("@")[0].replace("/", ".")


def short(value: Any) -> str:
    """The value as text that fits into a sentence."""
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def cause(override: str, name: str, value: Any) -> str:
    """The override to blame for a setting's value: with the setting, where it sets others too."""
    return override if key_of(override) == name else f"{override} with {name}={short(value)}"
