"""Tells when the neurons of a layer die: in the log, and by W&B's alerts where it is on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)

PREFIX = "sparsity/dead_fraction/"


class DeadAlerts(Logger):
    """A logger that writes nothing and looks at what is logged: one alert each time that a site's dead fraction passes
    a limit from below.

    Args:
        limit: the dead fraction. before: the last value of each metric, of a run that continues: what was above the
            limit has been told. wandb: whose run sends the alerts; None leaves them to the log.
    """

    def __init__(self, limit: float, before: Mapping[str, float], wandb: WandbLogger | None) -> None:
        super().__init__()
        self.limit, self.wandb = limit, wandb
        self._above = {name for name, value in before.items() if name.startswith(PREFIX) and value > limit}

    @property
    def name(self) -> str:
        return "alerts"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if not name.startswith(PREFIX):
                continue
            if value > self.limit and name not in self._above:
                self._tell(name.removeprefix(PREFIX), value, metrics, step)
            (self._above.add if value > self.limit else self._above.discard)(name)

    def _tell(self, label: str, value: float, metrics: Mapping[str, float], step: int | None) -> None:
        window = metrics.get("sparsity/dead_window_tokens")
        over = f" over the last {window:,.0f} tokens" if window else ""
        text = f"{value:.1%} of the neurons of {label} are dead{over}, more than logger.dead_alert={self.limit}."
        log.warning("step %s: %s", step, text)
        if self.wandb is not None:
            # W&B sends one alert of a title a minute: each layer has a title of its own.
            self.wandb.experiment.alert(title=f"{label}: dead neurons at step {step}", text=text, level="WARN")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to look at."""
