"""Composing the real configs, as ``train.py`` would."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from topklm.training.config import RunConfig

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The config of these overrides."""
    OmegaConf.register_new_resolver("topklm.run_dir", lambda *args: args[-1], replace=True)
    OmegaConf.register_new_resolver("topklm.short", str, replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def checked(*overrides: str) -> RunConfig:
    """The same, through all checks."""
    return RunConfig.from_hydra(composed(*overrides))
