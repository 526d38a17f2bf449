"""``python train.py plan=true``: checks the config, prints the plan and writes nothing."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..training.checking import build
from ..training.new_run import new_run_config
from .estimate import make_plan
from .page import header, page, row
from .settings import PlanConfig


def print_plan(cfg: DictConfig) -> None:
    """Prints the plan of the run that ``cfg`` describes; of a sweep's jobs a row each.

    Raises:
        UserError: a mistake in the config, or a run that cannot be planned.
    """
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN and job.job.num == 0:  # also where this job cannot be planned
        print(header())
    refusal = "plan=true plans a new run: leave out run=..., which continues one."
    _, config = new_run_config(cfg, own=("plan",), refusal=refusal)
    plan = make_plan(config, build(PlanConfig, config.plain["plan"], "plan"))
    if job.mode == RunMode.MULTIRUN:
        print(row(plan, " ".join(job.overrides.task) or "default"))
    else:
        print(page(plan))
