"""Runs a benchmark by name, prints its table, and writes it as JSON and as a picture, beside what it was measured
on."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..files import write_json
from ..training.config import RunConfig
from .compiled import compile_benchmark
from .data import data_benchmark
from .decode import decode_benchmark
from .memory import memory_benchmark
from .plot import draw_result
from .scaling import scaling_benchmark
from .step import step_benchmark
from .timing import Result, Row
from .topk import topk_benchmark

BENCHMARKS: dict[str, Callable[[RunConfig, int], Result]] = {
    "step": step_benchmark,
    "compile": compile_benchmark,
    "scaling": scaling_benchmark,
    "topk": topk_benchmark,
    "memory": memory_benchmark,
    "decode": decode_benchmark,
    "data": data_benchmark,
}
WIDTH = 150  # of tables in a file or a pipe
SETTINGS = ("what", "rounds", "shapes")  # of the command, besides a run's


def run_benchmark(cfg: DictConfig) -> None:
    """Measures ``cfg.what`` at the model and settings of ``cfg``. Raises UserError for an unknown benchmark."""
    if cfg.what not in BENCHMARKS:
        raise UserError(f"what={cfg.what}: choose from {', '.join(BENCHMARKS)}.")
    if not isinstance(cfg.rounds, int) or isinstance(cfg.rounds, bool) or cfg.rounds < 1:
        raise UserError(f"rounds={cfg.rounds}: give 1 or more.")
    config = RunConfig.from_hydra(cfg, own=SETTINGS)
    if cfg.shapes is None:
        result = BENCHMARKS[cfg.what](config, cfg.rounds)
    elif cfg.what == "topk":
        result = topk_benchmark(config, cfg.rounds, _checked(OmegaConf.to_object(cfg)["shapes"]))  # type: ignore[index, call-overload]
    else:
        raise UserError(f"shapes is a setting of what=topk, not of what={cfg.what}: leave it out.")
    console = Console(width=None if Console().is_terminal else WIDTH)
    console.print(_table(result.title, result.rows))
    for finding in result.findings:
        console.print(finding, highlight=False, soft_wrap=True)
    folder = Path(HydraConfig.get().runtime.output_dir)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    found = {name: value for name, value in dataclasses.asdict(result).items() if name != "plot"}
    written = [folder / f"{cfg.what}.json"]
    write_json(
        written[0], {"what": cfg.what, "machine": machine, "rounds": cfg.rounds, "config": config.plain, **found}
    )
    if draw_result(result, folder / f"{cfg.what}.png"):
        written.append(folder / f"{cfg.what}.png")
    console.print(f"written to {' and '.join(map(str, written))}", highlight=False, soft_wrap=True)


def _checked(shapes: Any) -> list[list[int]]:
    help_ = "give a list of [tokens, d, k] with 1 <= k <= d, as in shapes=[[65536,1024,128]]."
    if not isinstance(shapes, list) or not shapes:
        raise UserError(f"shapes={shapes}: {help_}")
    for shape in shapes:
        whole = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int for size in shape)
        if not whole or min(shape) < 1 or shape[2] > shape[1]:
            raise UserError(f"shapes has {shape}: {help_}")
    return shapes


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.0f}"


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    return table
