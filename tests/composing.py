"""Composing the real configs, as ``train.py`` would."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from topklm.cli import register_resolvers
from topklm.training.config import RunConfig

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str, name: str = "train", **options: bool) -> DictConfig:
    """The config of these overrides."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides), **options)


def checked(*overrides: str) -> RunConfig:
    """The same, through all checks."""
    return RunConfig.from_hydra(composed(*overrides))
