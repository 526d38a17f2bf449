"""How Lightning saves and loads checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from .checkpoint_files import load_checkpoint, save_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Whole files only. Lightning's own stages a file in the system's temporary folder, from where the last move can be
    a copy that breaks off."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
