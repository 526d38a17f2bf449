"""The sections of a run's config that belong to training: frozen dataclasses that check themselves and name the
override to change. (Model and TopK are in ``model/config.py``, the tokenizer in ``data/prepare.py``.)"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..data import Split
from ..model.config import CHECKPOINTING
from ..schedules import SHAPES, KSchedule, Schedule, Trapezoid, share_of_training
from .checking import parse_count


@dataclass(frozen=True)
class TrainingConfig:
    """How long to train, on how much at once, and how often to look.

    Attributes:
        steps: optimizer steps. tokens: the same as a number of tokens (``20M``); wins when set.
        batch_tokens: tokens per optimizer step, over all devices.
        micro_batch_tokens: most tokens per forward pass of one device, the rest is accumulated; None picks 4,096 on a
            CPU and 65,536 elsewhere.
        clip_grad_norm: largest norm of the gradient; None does not clip.
        z_loss: factor on the mean squared log-partition of the logits, added to the loss in training; 0 is off.
        eval_every, log_every: steps between validations, and between logged rows.
        eval_at_start: validate before the first step too; None does where the weights come from another run.
    """

    steps: int = 1000
    tokens: int | str | None = None
    batch_tokens: int = 4096
    micro_batch_tokens: int | None = None
    clip_grad_norm: float | None = 1.0
    z_loss: float = 0.0
    eval_every: int = 100
    log_every: int = 10
    eval_at_start: bool | None = None

    def __post_init__(self) -> None:
        if self.tokens is not None:
            steps = -(-parse_count(self.tokens, "training.tokens") // max(1, self.batch_tokens))
            object.__setattr__(self, "steps", steps)
        for name in ("steps", "batch_tokens", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name}={getattr(self, name)}: give 1 or more.")
        if self.micro_batch_tokens is not None and self.micro_batch_tokens < 1:
            raise ValueError(f"training.micro_batch_tokens={self.micro_batch_tokens}: give 1 or more, or null.")
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise ValueError(f"training.clip_grad_norm={self.clip_grad_norm}: give a number above 0, or null.")
        if not 0 <= self.z_loss < math.inf:
            raise ValueError(f"training.z_loss={self.z_loss}: give a finite number of 0 or more, such as 1e-4.")

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


MAX_NS_STEPS = 50  # 5 are usual; more than some ten change nothing


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
        for name, ok, wanted in (
            ("lr", self.lr > 0, "a number above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers of 0 or more and below 1"),
            ("eps", self.eps > 0, "a number above 0"),
            ("momentum", 0 <= self.momentum < 1, "0 or more and below 1"),
            ("ns_steps", 1 <= self.ns_steps <= MAX_NS_STEPS, f"a number from 1 to {MAX_NS_STEPS}"),
        ):
            if not ok:
                raise ValueError(f"optimizer.{name}={getattr(self, name)}: give {wanted}.")


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
    """How k moves from ``start`` to its final value. Durations as in LRScheduleConfig. ``start``, ``hold`` and
    ``length`` are one for all TopK blocks, or a list with one per block.

    Attributes:
        shape: constant, linear, cosine, exponential or step. start: first k; None means dense (k as wide as the site).
        hold: time at the start before moving. length: time of the move. n_steps: jumps of the step shape.
    """

    shape: str = "linear"
    start: int | list[int | None] | None = None
    hold: float | int | str | list[float | int | str] = 0.0
    length: float | int | str | list[float | int | str] = 0.5
    n_steps: int = 8

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"k_schedule.shape={self.shape}: choose from {', '.join(SHAPES)}.")
        for start in self.start if isinstance(self.start, list) else [self.start]:
            if start is not None and start < 1:
                raise ValueError(f"k_schedule.start={self.start}: give 1 or more, or null to start dense.")
        if self.n_steps < 1:
            raise ValueError(f"k_schedule.n_steps={self.n_steps}: give 1 or more.")

    def _of(self, name: str, block: int, n_blocks: int) -> Any:
        """The value of a setting for one of the TopK blocks."""
        value = getattr(self, name)
        if not isinstance(value, list):
            return value
        if len(value) != n_blocks:
            raise ValueError(
                f"k_schedule.{name} lists {len(value)} values for {n_blocks} TopK blocks: give one per TopK block, or "
                f"one value."
            )
        return value[block]

    def schedule(self, steps: int, tokens_per_step: int, n_blocks: int) -> KSchedule:
        """The schedules of the ``n_blocks`` TopK blocks of a run. Raises ValueError for a list of another length, and
        for one that does not end within the run."""
        return KSchedule(tuple(self._block(steps, tokens_per_step, block, n_blocks) for block in range(n_blocks)))

    def _block(self, steps: int, tokens_per_step: int, block: int, n_blocks: int) -> tuple[Schedule, int | None]:
        given = {name: self._of(name, block, n_blocks) for name in ("hold", "length")}
        hold, length = (
            share_of_training(duration, f"k_schedule.{name}", steps, tokens_per_step)
            for name, duration in given.items()
        )
        if self.shape != "constant" and hold + length > 1 + 1e-9:
            raise ValueError(
                f"k_schedule.hold={given['hold']} and k_schedule.length={given['length']} take longer than the run: k "
                f"would never reach its final value."
            )
        return Schedule(self.shape, hold, length, self.n_steps), self._of("start", block, n_blocks)


@dataclass(frozen=True)
class TrainerConfig:
    """Where to train, and in which arithmetic.

    Attributes:
        accelerator, devices, num_nodes, strategy: as in Lightning's Trainer.
        precision: auto, 32, bf16-mixed, or bf16-true (weights in bf16, float32 master weights in the optimizer); auto
            is bf16-mixed where the device has native bf16, else 32.
        compile: torch.compile on every block.
        activation_checkpointing: what forward passes keep for the backward pass: everything (``none``), results of
            matrix products and attention (``selective``), the input of every block (``block``), or that packed to its
            non-zeros (``block_sparse``). The rest is computed again.
        deterministic: torch's deterministic algorithms (a CPU is deterministic without).
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str | int = "auto"
    compile: bool = False
    activation_checkpointing: str = "none"
    deterministic: bool = False

    def __post_init__(self) -> None:
        if str(self.precision) not in ("auto", "32", "bf16-mixed", "bf16-true"):
            raise ValueError(f"trainer.precision={self.precision}: choose from auto, 32, bf16-mixed, bf16-true.")
        if self.activation_checkpointing not in CHECKPOINTING:
            raise ValueError(
                f"trainer.activation_checkpointing={self.activation_checkpointing}: choose from "
                f"{', '.join(CHECKPOINTING)}."
            )
        if self.devices < 1 or self.num_nodes < 1:
            raise ValueError(
                f"trainer.devices={self.devices}, trainer.num_nodes={self.num_nodes}: give 1 or more of each."
            )

    @property
    def ranks(self) -> int:
        """Processes that train, over all nodes."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class DataConfig:
    """How text becomes a token stream, and how that is read.

    Attributes:
        val_fraction: share of documents held out, chosen by a hash of their text.
        hold_out_tokens: keep the first so many held-out tokens only, so that a long stream can be validated on early.
        max_val_tokens: validate on the first so many of them; None means all.
        cache_dir: where tokenizers and token stores are kept for all runs.
        stream: train while the token store is written in the background; False writes it first.
        writers: tokenizing processes; None takes what the machine has.
        shard_tokens: tokens per file of the token store; None lets them grow from 1M to 32M.
        cache_gb: most gigabytes of training tokens to keep on disk while streaming; None means any.
        packing: ``concat`` cuts the stream of documents into windows, ``best_fit`` packs whole documents.
        attend: ``window``, or ``document``: attention stays inside a document, and positions begin anew with each.
        order: of windows, ``shuffled`` or ``sequential``. block_windows: they are shuffled inside blocks of this many.
        num_workers: DataLoader workers.
    """

    val_fraction: float = 0.05
    hold_out_tokens: int | str | None = None
    max_val_tokens: int | str | None = None
    cache_dir: str = "data/cache"
    stream: bool = False
    writers: int | None = None
    shard_tokens: int | str | None = None
    cache_gb: float | None = None
    packing: str = "concat"
    attend: str = "window"
    order: str = "shuffled"
    block_windows: int = 8192
    num_workers: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"data.val_fraction={self.val_fraction}: give a share above 0 and below 1.")
        if not self.cache_dir.strip():
            raise ValueError("data.cache_dir='' (or TOPKLM_CACHE='') is no folder: give one, such as data/cache.")
        for name, least in (("block_windows", 1), ("num_workers", 0), ("writers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"data.{name}={value}: give {least} or more.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"data.{name}={getattr(self, name)}: choose from {', '.join(choices)}.")
        for name in ("hold_out_tokens", "max_val_tokens", "shard_tokens"):
            if self.count(name) == 0:
                raise ValueError(f"data.{name}={getattr(self, name)}: give 1 or more, or null.")
        if self.cache_gb is not None and self.cache_gb <= 0:
            raise ValueError(f"data.cache_gb={self.cache_gb}: give a number above 0, or null.")
        if self.cache_gb is not None and not self.stream:
            raise ValueError(f"data.cache_gb={self.cache_gb} bounds a stream: add data.stream=true, or leave it out.")
        if self.cache_gb is not None and self.hold_out_tokens is None:
            raise ValueError(
                f"data.cache_gb={self.cache_gb} needs data.hold_out_tokens=500k or so: without, the whole stream would "
                f"have to be read before the first validation."
            )

    def count(self, name: str) -> int | None:
        """A number of tokens (``20M``) as a number."""
        value = getattr(self, name)
        return None if value is None else parse_count(value, f"data.{name}")

    @property
    def split(self) -> Split:
        return Split(self.val_fraction, self.count("hold_out_tokens"), self.count("shard_tokens"))


CHOICES = {"packing": ("concat", "best_fit"), "attend": ("window", "document"), "order": ("shuffled", "sequential")}


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go besides ``metrics.csv``, which is always written.

    Attributes:
        wandb: true, false, or ``auto``: on when an API key or WANDB_MODE is set. tensorboard: write event files.
        project, entity, name, group, tags: of the W&B run; a sweep's jobs share the sweep's name as their group.
        plots: draw the run's pictures at its end. ``scripts/plot_run.py`` does it later.
        dead_alert: tell, once each time, when the dead fraction of a layer passes this; None never does.
    """

    wandb: bool | str = "auto"
    tensorboard: bool = False
    project: str = "topklm"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: list[str] = dataclasses.field(default_factory=list)
    plots: bool = True
    dead_alert: float | None = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.wandb, bool) and self.wandb != "auto":
            raise ValueError(f"logger.wandb={self.wandb}: choose from true, false, auto.")
        if self.dead_alert is not None and not 0 <= self.dead_alert < 1:
            raise ValueError(
                f"logger.dead_alert={self.dead_alert}: give a share of a layer's neurons from 0 to below 1, or null."
            )
