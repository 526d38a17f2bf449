"""Where metrics go: ``metrics.csv`` always, Weights & Biases and TensorBoard when asked. The same names everywhere."""

from __future__ import annotations

import csv
import json
import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pydantic
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ..errors import UserError, run_argument
from ..files import atomic_path, disk_errors
from .alerts import DeadAlerts
from .derived import derived
from .hardware import is_main_process
from .sections import LoggerConfig

log = logging.getLogger(__name__)


class CSVLog(Logger):
    """One row per step, whatever number of calls it came in; columns are added as metrics appear.

    Unlike Lightning's CSVLogger it appends when a run continues, after dropping rows of steps that the checkpoint does
    not know.

    Args:
        path: the file, made on the first row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns = ["step"]
        self._row: dict[str, Any] = {}
        if path.exists():
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                self.columns = next(csv.reader(file), self.columns)
            if self.columns[:1] != ["step"]:
                raise UserError(
                    f"{path} is damaged, its first column is not step: remove it, and the run can continue."
                )

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._row and self._row["step"] != step:
            self.save()
        self._row = {"step": step, **self._row, **{name: f"{value:.8g}" for name, value in metrics.items()}}

    @property
    def last_step(self) -> int:
        """The step of the last row in the file, 0 where there is none."""
        return max((int(row["step"]) for row in self._rows() if row["step"].isdigit()), default=0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    @rank_zero_only
    def save(self) -> None:
        """Writes the row that is being gathered."""
        row, self._row = self._row, {}
        if not row:
            return
        new = [name for name in row if name not in self.columns]
        with disk_errors(self.path, f"Free some space, then continue with {run_argument(self.path.parent)}"):
            if new or not self.path.exists():
                self._rewrite([*self.columns, *new], self._rows())
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(row)

    @rank_zero_only
    def truncate(self, step: int) -> None:
        """Drops rows after ``step``: a continued run will write them again."""
        if not self.path.exists():
            return
        self._rewrite(self.columns, [row for row in self._rows() if row["step"].isdigit() and int(row["step"]) <= step])

    def finalize(self, status: str) -> None:
        self.save()

    def last_values(self) -> dict[str, float]:
        """The last value of every metric in the file."""
        rows = self._rows()
        return {name: float(text) for row in rows for name, text in row.items() if name != "step" and text}

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        self.columns = columns
        with atomic_path(self.path) as scratch, open(scratch, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


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


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads a ``metrics.csv``: for every metric, the steps at which it was logged and its values."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name != "step" and text:
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(text))
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in found.items()}


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
            with open(logger.path.with_name("histograms.jsonl"), "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


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
        loggers.append(DeadAlerts(config.dead_alert, csv_log.last_values(), wandb_log))
    if config.tensorboard:
        if not _has_tensorboard():
            raise UserError("logger.tensorboard=true needs the package tensorboard: pip install 'topklm[tensorboard]'.")
        loggers.append(TensorBoardLogger(save_dir=folder, name="tensorboard", version=""))
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


def results(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What runs are compared by, of a ``summary.json``; None where not measured. ``dead_worst``: the largest dead
    fraction of a site. ``energy_kept_last``: in the last layer with TopK."""
    sites = [row for row in summary.get("layers", []) if row.get("topk")]
    dead = [row["dead_fraction"] for row in sites if row.get("dead_fraction") is not None]
    return {
        **{name: summary.get(name) for name in ("val_loss", "val_bpb", "tokens_per_second", "params", "tokens")},
        "dead_worst": max(dead) if dead else None,
        "energy_kept_last": sites[-1].get("energy_kept") if sites else None,
    }
