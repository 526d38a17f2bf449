"""The config of a command that concerns a new run without being one: its data, its plan."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..errors import UserError
from .config import RunConfig
from .init_from import with_origin

OF_DATA = "run=... continues a run, whose data stays as it is: leave it out."


def new_run_config(cfg: DictConfig, own: Sequence[str], refusal: str = OF_DATA) -> tuple[DictConfig, RunConfig]:
    """Checks the config of a new run; with ``init_from`` the model and the tokenizer are those of the run to start
    from.

    Args:
        own: names of settings that belong to the command and not to a run. refusal: what to say where a run is to
            continue.

    Returns:
        The config as composed, and checked.

    Raises:
        UserError: one sentence, at the first mistake.
    """
    if cfg.run or cfg.resume:
        raise UserError(refusal)
    cfg = with_origin(cfg, HydraConfig.get().overrides.task)
    return cfg, RunConfig.from_hydra(cfg, own)
