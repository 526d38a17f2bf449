"""Where metrics go: ``metrics.csv`` always, Weights & Biases and TensorBoard when asked. The same names everywhere."""

from __future__ import annotations

import json
import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import matplotlib.pyplot as plt
import numpy as np
import pydantic
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ..errors import UserError
from .alerts import DeadAlerts
from .derived import derived
from .hardware import is_main_process
from .metrics_file import MetricsFile
from .results import results
from .sections import LoggerConfig

log = logging.getLogger(__name__)


class CSVLog(Logger):
    """Rows of ``metrics.csv``, one per step, whatever number of calls it came in, and whenever it was saved.

    Unlike Lightning's CSVLogger it appends when a run continues.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.file = MetricsFile(path)
        self._row: dict[str, Any] = {}  # of the step at hand
        self._is_there = self._is_saved = False  # whether the file has a row of that step, and whether it is this one

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._row:  # a run that continues may add to the row that it ended with
            last = self.file.last_row()
            self._is_there = last.get("step") == str(step)
            self._row = {**last, "step": step} if self._is_there else {"step": step}
        elif self._row["step"] != step:
            self.save()
            self._row, self._is_there = {"step": step}, False
        self._row.update({name: _text(value) for name, value in metrics.items()})
        self._is_saved = False

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the row that is being gathered. More may be added to it."""
        if self._row and not self._is_saved:
            (self.file.amend if self._is_there else self.file.append)(self._row)
            self._is_there = self._is_saved = True

    def finalize(self, status: str) -> None:
        self.save()


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.8g}"  # counts of tokens have more digits


# Of these a run's summary keeps the lowest value and the last. The lowest of val/loss and val/bpb may be from before k
# came down.
LOWEST = ("val/loss", "val/bpb", "val/loss_final_k", "val/bpb_final_k")


class WandbLog(WandbLogger):
    """Lightning's W&B logger, which tells what W&B refuses as a UserError, and says which values of a metric its
    tables show."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # of which W&B warns at every start
        self._defined = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        import wandb

        try:
            run = super().experiment
            if not self._defined:
                for name in LOWEST:
                    run.define_metric(
                        name, step_metric="trainer/global_step", step_sync=True, summary="min,last", overwrite=False
                    )
                self._defined = True
            return run
        except (wandb.Error, pydantic.ValidationError) as error:
            first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else None
            reason = f"{first['loc'][0]}={first['input']}: {first['msg']}" if first else str(error).rstrip(".")
            raise UserError(f"Weights & Biases: {reason}. Put that right, or turn it off with logger=csv.") from error


def wandb_run_id() -> str:
    """The id of a new W&B run: the one that the agent of a W&B sweep has given it, otherwise a fresh one."""
    given = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return given or secrets.token_hex(4)


def log_histogram(loggers: list[Logger], name: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
    """Sends a histogram to every logger: W&B and TensorBoard draw it, CSVLog appends it to ``histograms.jsonl``.

    Args:
        counts: (n,) of each bin. edges: (n + 1,) between them.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({name: wandb.Histogram(np_histogram=(counts, edges)), "trainer/global_step": step})
        elif isinstance(logger, TensorBoardLogger):
            centres = (edges[1:] + edges[:-1]) / 2
            logger.experiment.add_histogram_raw(
                name,
                min=edges[0],
                max=edges[-1],
                num=counts.sum(),
                sum=(centres * counts).sum(),
                sum_squares=(centres**2 * counts).sum(),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
        elif isinstance(logger, CSVLog):
            entry = {"step": step, "name": name, "edges": edges.tolist(), "counts": counts.tolist()}
            with open(logger.file.path.with_name("histograms.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def log_picture(loggers: list[Logger], name: str, picture: Path, step: int) -> None:
    """Shows a PNG file to the loggers that take pictures, W&B and TensorBoard."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(picture)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, plt.imread(picture), step, dataformats="HWC")


def wandb_is_set_up() -> bool:
    """Whether the user has asked for W&B: WANDB_MODE or an API key in the environment or the netrc file."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode != "disabled"
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for file in filter(None, (os.environ.get("NETRC"), Path.home() / ".netrc", Path.home() / "_netrc")):
        try:
            if netrc.netrc(str(file)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def build_loggers(
    config: LoggerConfig, folder: Path, settings: dict[str, Any], wandb_id: str, group: str | None
) -> list[Logger]:
    """The loggers of a run. ``group`` is the sweep's name, for a sweep's jobs."""
    csv_log = CSVLog(folder / "metrics.csv")
    loggers: list[Logger] = [csv_log]
    use_wandb = wandb_is_set_up() if config.wandb == "auto" else bool(config.wandb)
    if use_wandb:
        loggers.append(
            WandbLog(
                project=config.project,
                entity=config.entity,
                name=config.name or folder.name,
                group=config.group or group,
                tags=config.tags,
                id=wandb_id,
                resume="allow",
                save_dir=folder.absolute(),  # W&B's service may have been started elsewhere, by an agent for one
                # Beside the settings what they come to, under names without a dot: to group by, and to plot against.
                config={**settings, **{name: value for name, value in derived(settings).items() if name != "ks"}},
                log_model=False,
            )
        )
    elif config.wandb == "auto" and is_main_process():
        log.info("Weights & Biases is off: turn it on with `wandb login`, or offline with WANDB_MODE=offline.")
    if config.dead_alert is not None:
        wandb_log = loggers[-1] if isinstance(loggers[-1], WandbLog) else None
        loggers.append(DeadAlerts(config.dead_alert, csv_log.file.last_values(), wandb_log))
    if config.tensorboard:
        if not _has_tensorboard():
            raise UserError("logger.tensorboard=true needs the package tensorboard: pip install 'topklm[tensorboard]'.")
        # What a run logged after the checkpoint that it continues from, or without any, it will log again.
        after = csv_log.file.last_step + 1 if csv_log.file.last_row() else 0
        loggers.append(TensorBoardLogger(save_dir=folder, name="tensorboard", version="", purge_step=after))
    return loggers


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None


def finish_loggers(loggers: list[Logger], summary: Mapping[str, Any]) -> None:
    """Closes every logger. W&B must be told: a second run in the same process would otherwise go on writing into the
    first.

    Args:
        summary: what ``summary.json`` will say. W&B's summary gets what sweeps are compared by, as ``final/NAME``.
    """
    succeeded = summary["status"] == "finished"
    for logger in loggers:
        logger.finalize("success" if succeeded else "failed")
        if isinstance(logger, WandbLogger) and is_main_process():
            import wandb

            if succeeded:
                logger.experiment.summary.update({f"final/{name}": value for name, value in results(summary).items()})
            wandb.finish(exit_code=0 if succeeded else 1)
