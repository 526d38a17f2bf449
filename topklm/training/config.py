"""From Hydra's config to checked dataclasses: every mistake a user can make in a config shows here, before anything is
loaded or written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pydantic
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..data.prepare import TokenizerConfig
from ..errors import UserError
from ..model.config import ModelConfig, TopKConfig
from ..schedules import SHAPES, UNITS, Schedule, Trapezoid, share_of_training

T = TypeVar("T")


def build(cls: type[T], node: Mapping[str, Any], prefix: str) -> T:
    """Makes the dataclass ``cls`` of a config node, checking names and types.

    Raises:
        UserError: one sentence that names the override: an unknown name, a wrong type, or what ``__post_init__`` has
        to say.
    """
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in node:
        if name not in known:
            raise UserError(f"{prefix}.{name} is not a setting of topklm: choose from {', '.join(known)}.")
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(node))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if "error" in first.get("ctx", {}):  # raised by __post_init__, in its own words
            raise UserError(str(first["ctx"]["error"])) from error
        name = str(first["loc"][0]) if first["loc"] else ""
        raise UserError(f"{prefix}.{name}={node.get(name)}: {first['msg'].lower()}.") from error


def parse_count(value: int | str, name: str) -> int:
    """A number of tokens: ``20000000`` or ``20M``; k, M and B are powers of a thousand."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmb]?)", str(value).strip().lower())
    if not match:
        raise ValueError(f"{name}={value}: give a number of tokens, such as 3000000 or 3M.")
    return round(float(match[1]) * UNITS[match[2]])


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, on how much at once, and how often to look.

    Attributes:
        steps: optimizer steps. tokens: the same as a number of tokens (``20M``); wins when set.
        batch_tokens: tokens per optimizer step, over all devices.
        micro_batch_tokens: most tokens per forward pass of one device, the rest is accumulated; None picks 4,096 on a
            CPU and 65,536 elsewhere.
        clip_grad_norm: largest norm of the gradient; None does not clip.
        eval_every, log_every: steps between validations, and between logged rows.
    """

    steps: int = 1000
    tokens: int | str | None = None
    batch_tokens: int = 4096
    micro_batch_tokens: int | None = None
    clip_grad_norm: float | None = 1.0
    eval_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.tokens is not None:
            steps = -(-parse_count(self.tokens, "training.tokens") // max(1, self.batch_tokens))
            object.__setattr__(self, "steps", steps)
        for name in ("steps", "batch_tokens", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}={getattr(self, name)}: give 1 or more.")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens < 1:
            raise ValueError(f"training.micro_batch_tokens={self.micro_batch_tokens}: give 1 or more, or null.")
        if self.clip_grad_norm is not None and self.clip_grad_norm <= 0:
            raise ValueError(f"training.clip_grad_norm={self.clip_grad_norm}: give a number above 0, or null.")

    def windows_per_step(self, seq_len: int) -> int:
        """Windows in the global batch. Raises ValueError unless ``batch_tokens`` is a whole number of them."""
        if self.batch_tokens % seq_len:
            raise ValueError(
                f"training.batch_tokens={self.batch_tokens} is not a multiple of model.seq_len={seq_len}: change one "
                f"of them."
            )
        return self.batch_tokens // seq_len

    def micro_windows(self, seq_len: int, share: int, device: str) -> int:
        """Windows per forward pass: the largest divisor of a device's ``share`` of the batch that fits the
        micro-batch."""
        most = (self.micro_batch_tokens or (4096 if device == "cpu" else 65536)) // seq_len
        if self.micro_batch_tokens is not None and most < 1:
            raise ValueError(
                f"training.micro_batch_tokens={self.micro_batch_tokens} is less than one window of "
                f"model.seq_len={seq_len}: raise it."
            )
        return next(n for n in range(max(1, min(most, share)), 0, -1) if share % n == 0)


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, and its settings.

    Attributes:
        name: ``adamw``, or ``muon`` (Muon for hidden matrices, AdamW for the rest).
        lr: peak learning rate. weight_decay: decoupled, on matrices only.
        betas, eps: of AdamW. momentum, ns_steps: of Muon (Newton-Schulz iterations).
    """

    name: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    ns_steps: int = 5

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"optimizer.name={self.name}: choose from adamw, muon.")
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr={self.lr}: give a number above 0.")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay={self.weight_decay}: give 0 or more.")


@dataclass(frozen=True)
class LRScheduleConfig:
    """The learning rate over training: up, level, down. Durations are a share (0.1, 10%), '200 steps' or '2M tokens'.

    Attributes:
        warmup: time to reach the peak. decay: time of the way down, at the end; 1.0 decays from the peak on.
        shape: of the decay: linear, cosine, exponential, step, or constant for none. end: share of the peak on arrival.
    """

    warmup: float | int | str = 0.05
    decay: float | int | str = 1.0
    shape: str = "cosine"
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"lr_schedule.shape={self.shape}: choose from {', '.join(SHAPES)}.")
        if not 0 <= self.end <= 1 or (self.shape == "exponential" and self.end == 0):
            raise ValueError(
                f"lr_schedule.end={self.end}: give a share of the peak from 0 to 1 (above 0 for an exponential decay)."
            )

    def schedule(self, steps: int, tokens_per_step: int) -> Trapezoid:
        warmup, decay = (
            share_of_training(getattr(self, name), f"lr_schedule.{name}", steps, tokens_per_step)
            for name in ("warmup", "decay")
        )
        if warmup > 1:
            raise ValueError(f"lr_schedule.warmup={self.warmup} is longer than the run ({steps} steps): shorten it.")
        return Trapezoid(warmup, min(decay, 1.0), self.shape, self.end)


@dataclass(frozen=True)
class KScheduleConfig:
    """How k moves from ``start`` to its final value. Durations as in LRScheduleConfig.

    Attributes:
        shape: constant, linear, cosine, exponential or step. start: first k; None means dense (k as wide as the site).
        hold: time at the start before moving. length: time of the move. n_steps: jumps of the step shape.
    """

    shape: str = "linear"
    start: int | None = None
    hold: float | int | str = 0.0
    length: float | int | str = 0.5
    n_steps: int = 8

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"k_schedule.shape={self.shape}: choose from {', '.join(SHAPES)}.")
        if self.start is not None and self.start < 1:
            raise ValueError(f"k_schedule.start={self.start}: give 1 or more, or null to start dense.")
        if self.n_steps < 1:
            raise ValueError(f"k_schedule.n_steps={self.n_steps}: give 1 or more.")

    def schedule(self, steps: int, tokens_per_step: int) -> Schedule:
        hold, length = (
            share_of_training(getattr(self, name), f"k_schedule.{name}", steps, tokens_per_step)
            for name in ("hold", "length")
        )
        if self.shape != "constant" and hold + length > 1 + 1e-9:
            raise ValueError(
                f"k_schedule.hold={self.hold} and k_schedule.length={self.length} take longer than the run: k would "
                f"never reach its final value."
            )
        return Schedule(self.shape, hold, length, self.n_steps)


@dataclass(frozen=True)
class TrainerConfig:
    """Where to train, and in which arithmetic.

    Attributes:
        accelerator, devices, num_nodes, strategy: as in Lightning's Trainer.
        precision: auto, 32, bf16-mixed or bf16-true; auto is bf16-mixed where the device has native bf16, else 32.
        compile: torch.compile on every block.
        deterministic: torch's deterministic algorithms (a CPU is deterministic without).
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | int = "auto"
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        if str(self.precision) not in ("auto", "32", "bf16-mixed", "bf16-true"):
            raise ValueError(f"trainer.precision={self.precision}: choose from auto, 32, bf16-mixed, bf16-true.")
        if self.devices < 1 or self.num_nodes < 1:
            raise ValueError(
                f"trainer.devices={self.devices}, trainer.num_nodes={self.num_nodes}: give 1 or more of each."
            )


@dataclass(frozen=True)
class DataConfig:
    """How the token stream is read.

    Attributes:
        val_fraction: share of documents held out, chosen by a hash of their text.
        cache_dir: where tokenizers and token stores are kept for all runs.
        block_windows: windows are shuffled inside blocks of this many. num_workers: DataLoader workers.
        max_val_tokens: validate on the first so many tokens of the split; None means all of it.
    """

    val_fraction: float = 0.05
    cache_dir: str = "data/cache"
    block_windows: int = 65536
    num_workers: int = 0
    max_val_tokens: int | str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction={self.val_fraction}: give a share above 0 and below 1.")
        if self.block_windows < 1 or self.num_workers < 0:
            raise ValueError(
                f"data.block_windows={self.block_windows}, data.num_workers={self.num_workers}: give at least 1, and "
                f"at least 0."
            )
        if self.max_val_tokens is not None:
            parse_count(self.max_val_tokens, "data.max_val_tokens")

    @property
    def val_tokens(self) -> int | None:
        """``max_val_tokens`` as a number."""
        return None if self.max_val_tokens is None else parse_count(self.max_val_tokens, "data.max_val_tokens")


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go besides ``metrics.csv``, which is always written.

    Attributes:
        wandb: true, false, or ``auto``: on when an API key or WANDB_MODE is set. tensorboard: write event files.
        project, entity, name, group, tags: of the W&B run; a sweep's jobs share the sweep's name as their group.
    """

    wandb: bool | str = "auto"
    tensorboard: bool = False
    project: str = "topklm"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not isinstance(self.wandb, bool) and self.wandb != "auto":
            raise ValueError(f"logger.wandb={self.wandb}: choose from true, false, auto.")


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
    plain: dict[str, Any]

    @classmethod
    def from_hydra(cls, cfg: DictConfig) -> RunConfig:
        """Checks a composed config. Raises UserError with one sentence at the first mistake."""
        try:
            plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        except OmegaConfBaseException as error:  # a value that must be given, or a broken interpolation
            raise UserError(f"{error.full_key or 'config'}: {str(error.msg or error).splitlines()[0]}.") from error
        seed = plain["seed"]
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"seed={seed}: give a whole number of 0 or more.")
        data = {
            key: value
            for key, value in plain["data"].items()
            if key in {f.name for f in dataclasses.fields(DataConfig)}
        }
        model = {key: value for key, value in plain["model"].items() if key != "name"}
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
            self.k_schedule.schedule(training.steps, training.batch_tokens)
            ranks = self.trainer.devices * self.trainer.num_nodes
            if windows % ranks:
                raise ValueError(
                    f"training.batch_tokens={training.batch_tokens} makes {windows} windows, which {ranks} devices "
                    f"cannot share evenly: change it."
                )
            training.micro_windows(model.seq_len, windows // ranks, "cpu")
        except ValueError as error:
            raise UserError(str(error)) from error

    def model_config(self, vocab_size: int) -> ModelConfig:
        """The model's config for a tokenizer of ``vocab_size`` tokens."""
        return build(ModelConfig, {**self.model, "vocab_size": vocab_size, "topk": self.topk}, "model")
