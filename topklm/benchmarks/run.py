"""Runs a benchmark by name, prints its table and writes it as JSON beside what it was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..files import write_json
from ..training.config import RunConfig
from .data import data_benchmark
from .decode import decode_benchmark
from .step import step_benchmark

BENCHMARKS = {"step": step_benchmark, "data": data_benchmark, "decode": decode_benchmark}


def run_benchmark(cfg: DictConfig) -> None:
    """Measures ``cfg.what`` at the model and settings of ``cfg``. Raises UserError for an unknown benchmark."""
    if cfg.what not in BENCHMARKS:
        raise UserError(f"what={cfg.what}: choose from {', '.join(BENCHMARKS)}.")
    config = RunConfig.from_hydra(cfg, own=("what", "rounds"))
    result = BENCHMARKS[cfg.what](config, cfg.rounds)
    console = Console()
    console.print(_table(result.title, result.rows))
    for finding in result.findings:
        console.print(finding, highlight=False, soft_wrap=True)
    target = Path(HydraConfig.get().runtime.output_dir) / f"{cfg.what}.json"
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    write_json(
        target, {"what": cfg.what, "machine": machine, "rounds": cfg.rounds, "config": config.plain, **vars(result)}
    )
    console.print(f"written to {target}", highlight=False)


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.0f}"


def _table(title: str, rows: list[dict[str, str | float]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    return table
