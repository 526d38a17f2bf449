"""A whole run's config, from Hydra to checked dataclasses: every mistake a user can make in it shows here, before
anything is loaded or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ..data import TokenizerConfig
from ..errors import UserError, missing_setting
from ..model.config import ModelConfig, TopKConfig
from ..schedules import KSchedule
from .checking import build, check_names
from .sections import (
    DataConfig,
    KScheduleConfig,
    LoggerConfig,
    LRScheduleConfig,
    OptimizerConfig,
    TrainerConfig,
    TrainingConfig,
)


@dataclass(frozen=True)
class RunConfig:
    """A whole run, checked. ``model`` still lacks the vocabulary size, which the tokenizer sets: ``model_config`` adds
    it."""

    seed: int
    model: dict[str, Any]
    topk: TopKConfig
    k_schedule: KScheduleConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    lr_schedule: LRScheduleConfig
    training: TrainingConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    init_from: str | None
    plain: dict[str, Any]

    @classmethod
    def from_hydra(cls, cfg: DictConfig, own: Sequence[str] = ()) -> RunConfig:
        """Checks a composed config. ``own``: names of settings that belong to the command and not to a run.

        Raises:
            UserError: one sentence, at the first mistake.
        """
        try:
            plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        except MissingMandatoryValue as error:
            raise UserError(missing_setting(error.full_key or "a setting")) from error
        except OmegaConfBaseException as error:  # a broken interpolation
            raise UserError(f"{error.full_key or 'config'}: {str(error.msg or error).splitlines()[0]}.") from error
        sections = [field.name for field in dataclasses.fields(cls) if field.name != "plain"]
        check_names(plain, [*sections, "callbacks", "run", "resume", *own], "")
        seed = plain["seed"]
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise UserError(f"seed={seed}: give a whole number from 0 to 4294967295.")
        init_from = plain["init_from"]
        if init_from is not None and not (isinstance(init_from, str) and init_from.strip()):
            raise UserError(f"init_from={init_from}: give the directory of a run, one of its checkpoints, or null.")
        model = _part(plain["model"], ModelConfig, "model", without=("vocab_size", "topk"), beside=("name",))
        source = plain["data"].get("source") if isinstance(plain["data"], Mapping) else None
        if isinstance(plain["data"], Mapping) and "source" in plain["data"] and not _is_class(source):
            raise UserError(
                f"data.source={'null' if source is None else source}: it needs a class that yields documents, such as "
                f"data.source._target_=my_package.MySource; data=files and the like choose one of topklm."
            )
        # What a source takes is named alike in data and in data.source, where it is used.
        used = [name for name in source if name != "_target_"] if isinstance(source, Mapping) else []
        data = _part(plain["data"], DataConfig, "data", beside=("source",), also=used)
        config = cls(
            seed=seed,
            model=model,
            topk=build(TopKConfig, plain["topk"], "topk"),
            k_schedule=build(KScheduleConfig, plain["k_schedule"], "k_schedule"),
            data=build(DataConfig, data, "data"),
            tokenizer=build(TokenizerConfig, plain["tokenizer"], "tokenizer"),
            optimizer=build(OptimizerConfig, plain["optimizer"], "optimizer"),
            lr_schedule=build(LRScheduleConfig, plain["lr_schedule"], "lr_schedule"),
            training=build(TrainingConfig, plain["training"], "training"),
            trainer=build(TrainerConfig, plain["trainer"], "trainer"),
            logger=build(LoggerConfig, plain["logger"], "logger"),
            init_from=init_from,
            plain=plain,
        )
        config._check_together()
        return config

    def _check_together(self) -> None:
        model = self.model_config(vocab_size=257)
        training = self.training
        try:
            windows = training.windows_per_step(model.seq_len)
            self.lr_schedule.schedule(training.steps, training.batch_tokens)
            starts = [start or 1 for _, start in self.k_schedule_of(model).blocks]
            for site in model.topk.sites:
                if max(starts) > model.site_width(site):
                    raise ValueError(
                        f"k_schedule.start={max(starts)} is larger than the {model.site_width(site)} neurons "
                        f"of {site}: lower it, or give null to start dense."
                    )
            ranks = self.trainer.ranks
            if windows % ranks:
                raise ValueError(
                    f"training.batch_tokens={training.batch_tokens} makes {windows} windows, which {ranks} devices "
                    f"cannot share evenly: change it."
                )
            training.micro_windows(model.seq_len, windows // ranks, "cpu")
        except ValueError as error:
            raise UserError(str(error)) from error

    def k_schedule_of(self, model: ModelConfig) -> KSchedule:
        """k over the run, for the TopK blocks of ``model``. Raises ValueError where the two do not fit."""
        blocks = len(model.topk.topk_layers(model.n_layers))
        return self.k_schedule.schedule(self.training.steps, self.training.batch_tokens, blocks)

    @property
    def eval_at_start(self) -> bool:
        """Whether to validate before the first step."""
        asked = self.training.eval_at_start
        return self.init_from is not None if asked is None else asked

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The model's config for a tokenizer of ``vocab_size`` tokens."""
        return build(ModelConfig, {**self.model, "vocab_size": vocab_size, "topk": self.topk}, "model")


def _is_class(node: Any) -> bool:
    return isinstance(node, Mapping) and isinstance(node.get("_target_"), str)


def _part(
    node: Any, cls: type, prefix: str, *, beside: Sequence[str], without: Sequence[str] = (), also: Iterable[str] = ()
) -> dict[str, Any]:
    """What a section holds for the dataclass ``cls``, after a check of its names: fields of ``cls``, some ``without``;
    ``beside`` them names for others; and ``also`` some that may be missing."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in without]
    check_names(node, [*names, *beside], f"{prefix}.", also)
    return {name: node[name] for name in names}
