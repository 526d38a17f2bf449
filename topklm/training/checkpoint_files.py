"""Checkpoints written whole or not at all, and read without running anybody's code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, run_argument
from ..files import atomic_path, disk_errors

NEEDED = {"state_dict", "optimizer_states", "global_step", "topklm"}
NEEDED_OF_TOPKLM = {"config", "latest", "validated_at"}


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Saves beside the target and renames, so that a kill or a full disk leaves the checkpoint that was there before.

    Raises:
        UserError: it cannot be written.
    """
    with disk_errors(
        path,
        f"The checkpoints before it are untouched: free some space, then continue with "
        f"{run_argument(path.parent.parent)}",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as scratch:
            try:
                torch.save(checkpoint, scratch)
            except RuntimeError as error:  # torch's writer reports a full disk in its own way
                raise OSError(str(error).splitlines()[0]) from error


def checkpoint_at(path: Path) -> Path:
    """The last checkpoint of the run directory ``path``, or the checkpoint that ``path`` is."""
    return path / "checkpoints" / "last.ckpt" if path.is_dir() else path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a topklm checkpoint onto the CPU, ``weights_only``.

    Raises:
        UserError: missing, truncated, or not one of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"There is no checkpoint {path}.") from error
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise _damaged(path) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("topklm"), dict):
        raise UserError(f"{path} is a checkpoint of another program: topklm continues only its own.")
    if not (checkpoint.keys() >= NEEDED and checkpoint["topklm"].keys() >= NEEDED_OF_TOPKLM):
        raise _damaged(path)
    return checkpoint


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged or not a topklm checkpoint: remove it, or put another of the run's checkpoints in its "
        f"place."
    )
