"""Starting from the weights of another run: ``init_from=DIR`` makes a trained model, dense or TopK, the beginning of a
new run, with an optimizer, schedules and data of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ..cli import CONF
from ..data import Tokenizer
from ..errors import UserError
from ..model import TopKTransformer
from ..model.config import ModelConfig, TopKConfig
from .checking import build
from .checkpoint_files import checkpoint_at, load_checkpoint
from .config import RunConfig
from .flat import flat, is_below
from .stored import OVERLAYS, cause, key_of, load_config, short

FREE = ("model.name", "model.seq_len")  # of the model's settings those that no weight depends on


@dataclass(frozen=True)
class Origin:
    """The run that a new one starts from.

    Attributes:
        run: its directory. checkpoint: the one to take, below it. model: its model's settings, as in its config.
        end_of_text: its tokenizer's, None for one of the usual names.
    """

    run: Path
    checkpoint: Path
    model: dict[str, Any]
    end_of_text: str | None

    @classmethod
    def find(cls, init_from: str) -> Origin:
        """The run in the directory ``init_from`` with its last checkpoint, or with the one that ``init_from`` names.

        Raises:
            UserError: no such file, no run directory, or one without a checkpoint or a tokenizer.
        """
        path = Path(init_from)
        if not path.exists():
            raise UserError(f"init_from={path} does not exist: give the directory of a run, or one of its checkpoints.")
        run = path if path.is_dir() else path.parent.parent
        stored = load_config(run, ("model", "tokenizer"))
        checkpoint = checkpoint_at(path)
        if not checkpoint.is_file():
            raise UserError(f"init_from={path} has no checkpoint {checkpoint.relative_to(run)}: give a run that has.")
        if not (run / "tokenizer.json").is_file():
            raise UserError(f"init_from={path} has no tokenizer.json: put that of its model there.")
        model = OmegaConf.to_container(stored.model)
        assert isinstance(model, dict)
        return cls(run, checkpoint, {str(name): value for name, value in model.items()}, stored.tokenizer.end_of_text)


def with_origin(cfg: DictConfig, overrides: Sequence[str], begun: Path | None = None) -> DictConfig:
    """The config of a run that starts from ``cfg.init_from``: with the model of that run, and with its tokenizer
    unless the command line names one. As it is where ``cfg.init_from`` is null.

    Args:
        cfg: the composed config. overrides: the command line's, such as ``topk.k=64``. begun: the directory of the run,
            which may have begun: if there is nothing to start from any more, its own config says what it took.

    Raises:
        UserError: there is nothing to start from, or an override wants another model.
    """
    if not cfg.init_from:
        return cfg
    try:
        origin = Origin.find(cfg.init_from)
        file = {"name": "file", "path": str(origin.run / "tokenizer.json"), "repo": None, "revision": None}
        theirs, tokenizer = origin.model, {**file, "end_of_text": origin.end_of_text}
    except UserError:
        taken = _taken(begun, cfg.init_from)
        if taken is None:
            raise
        theirs, tokenizer = taken
    model = dict(theirs)
    ours = flat(OmegaConf.masked_copy(cfg, "model"))
    for override in overrides:
        for name, wanted in _model_settings(override, ours).items():
            setting = name.removeprefix("model.")
            if name in FREE:
                model[setting] = wanted
            elif not _same_model(theirs, {**theirs, setting: wanted}):
                raise UserError(
                    f"{cause(override, name, wanted)} contradicts init_from={cfg.init_from}, whose {name} is "
                    f"{short(theirs.get(setting))}: leave one of them out."
                )
    cfg = cfg.copy()
    OmegaConf.update(cfg, "model", model, merge=False)
    if not any(is_below(key_of(override), ("tokenizer",)) for override in overrides):
        OmegaConf.update(cfg, "tokenizer", {**cfg.tokenizer, **tokenizer}, merge=False)
    return cfg


def _taken(begun: Path | None, init_from: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Settings of model and tokenizer of the run in ``begun``, if there is one that started from ``init_from``."""
    if begun is None or not (begun / "config.yaml").is_file():
        return None
    stored = load_config(begun, ("model", "tokenizer"))
    if stored.get("init_from") != init_from:
        return None
    return {str(name): value for name, value in stored.model.items()}, dict(stored.tokenizer)


def _model_settings(override: str, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Which of the model's settings the override sets, with their values in the composed config."""
    key, _, choice = override.partition("=")
    key = key_of(key)
    if key in OVERLAYS:
        file = CONF / key / f"{choice}.yaml"
        node = OmegaConf.select(OmegaConf.load(file), "model") if file.is_file() else None
        return {f"model.{name}": ours[f"model.{name}"] for name in node or {}}
    return {name: value for name, value in ours.items() if is_below(name, ("model",)) and is_below(name, (key,))}


def _same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two models' settings mean the same, such as ``d_ff: null`` and the width it stands for."""
    try:
        return _built(one) == _built(other)
    except UserError:
        return False


def _built(model: Mapping[str, Any]) -> ModelConfig:
    kept = {name: value for name, value in model.items() if f"model.{name}" not in FREE}
    return build(ModelConfig, {**kept, "vocab_size": 257, "seq_len": 1, "topk": TopKConfig(sites=())}, "model")


def load_origin(config: RunConfig, model: TopKTransformer, tokenizer: Tokenizer) -> dict[str, Any]:
    """Fills the parameters of ``model`` with those of the run that ``config.init_from`` names. Which k its TopK sites
    had is left behind: the new run's schedule sets k.

    Args:
        config: of the new run. model: just built, overwritten. tokenizer: of the new run's data.

    Returns:
        What was taken, for the summary: ``checkpoint``, its ``sha256``, and the ``step`` it was saved at.

    Raises:
        UserError: the checkpoint cannot be read, belongs to another model, or was trained with another tokenizer.
    """
    assert config.init_from is not None
    origin = Origin.find(config.init_from)
    theirs = Tokenizer.load(origin.run / "tokenizer.json", origin.end_of_text)
    if theirs.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"init_from={config.init_from} was trained with another tokenizer ({theirs.vocab_size:,} tokens) than "
            f"tokenizer={config.tokenizer.name} gives here ({tokenizer.vocab_size:,} tokens): leave the tokenizer out, "
            f"and that of {origin.run} is used."
        )
    checkpoint = load_checkpoint(origin.checkpoint)
    if not _same_model(origin.model, checkpoint["topklm"]["config"].get("model", {})):
        raise UserError(
            f"{origin.checkpoint} is of another model than {origin.run / 'config.yaml'}: put the run's own checkpoint "
            f"in its place."
        )
    _copy(checkpoint["state_dict"], model, origin.checkpoint)
    with open(origin.checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"checkpoint": str(origin.checkpoint), "sha256": digest, "step": checkpoint["global_step"]}


@torch.no_grad()
def _copy(state: Mapping[str, Tensor], model: TopKTransformer, checkpoint: Path) -> None:
    parameters = dict(model.named_parameters())
    known = {f"model.{name}" for name in model.state_dict()}
    for name in state.keys() - known:
        if not any(part.startswith("topk") for part in name.split(".")):  # the other run's sites may be elsewhere
            raise UserError(f"{checkpoint} holds {name}, for which this model has no place: give a run of this model.")
    for name, parameter in parameters.items():
        value = state.get(f"model.{name}")
        if value is None or value.shape != parameter.shape:
            found = "nothing" if value is None else tuple(value.shape)
            raise UserError(
                f"{checkpoint} does not fit this model, whose {name} is {tuple(parameter.shape)}: it holds {found}."
            )
        parameter.copy_(value)
