"""Hydra's callback that writes the report when a sweep ends. It loads nothing heavy before: Hydra makes it at every
start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class SweepReport(Callback):
    """Writes ``report/`` into the sweep's directory after its last job. A report that fails does not fail the sweep.

    Args:
        enabled: write it at all.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if not self.enabled or not any(folder.glob("*/summary.json")):
            return
        try:
            from rich.console import Console

            from .write import report_sweep

            report_sweep([folder], None, Console())
        except Exception as error:
            log.warning(
                "The report of the sweep could not be written (%s): its runs are as they are. Try again with "
                "python scripts/sweep_report.py sweep=%s",
                str(error).partition("\n")[0] or type(error).__name__,
                folder,
            )
