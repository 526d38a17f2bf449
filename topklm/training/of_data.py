"""The config of a command that deals with data alone, with the source and tokenizer that a run of it would have."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ..errors import UserError
from .config import RunConfig
from .init_from import with_origin


def data_config(cfg: DictConfig, own: Sequence[str]) -> tuple[DictConfig, RunConfig]:
    """Checks the config of a data command; with ``init_from`` the tokenizer is that of the run to start from.

    Args:
        own: names of settings that belong to the command and not to a run.

    Returns:
        The config as composed, and checked.

    Raises:
        UserError: one sentence, at the first mistake.
    """
    for name in ("run", "resume"):
        if cfg[name]:
            raise UserError(f"{name}={cfg[name]} continues a run, whose data stays as it is: leave it out.")
    cfg = with_origin(cfg, HydraConfig.get().overrides.task)
    return cfg, RunConfig.from_hydra(cfg, own)
