"""From a checked config to the parts of a run: data, module, callbacks, loggers, trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig

from ..callbacks import Checkpoints, Interrupt, Samples, Throughput
from ..data import Prepared, TokenData, prepare
from ..errors import UserError, user_errors
from .checkpoint_io import AtomicCheckpointIO
from .config import RunConfig
from .hardware import compile_obstacle, peak_flops, resolve_device, resolve_precision
from .loggers import build_loggers
from .module import TopKLM
from .rundir import RunDirectory
from .summary import Summary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a run is made of.

    Attributes:
        prepared: tokenizer and stores. data, module, trainer: Lightning's three. loggers: open until closed.
        interrupt: knows whether a signal stopped the run. samples: what the model said last, if it was asked.
    """

    prepared: Prepared
    data: TokenData
    module: TopKLM
    trainer: L.Trainer
    loggers: list[Logger]
    interrupt: Interrupt
    samples: Samples | None


def assemble(cfg: DictConfig, config: RunConfig, run: RunDirectory, summary: Summary, sweep: str | None) -> Parts:
    """Builds the parts, in the order in which they depend on each other.

    Args:
        cfg: the composed config, of which the open-ended nodes (data source, callbacks) are instantiated. config: the
            same, checked.
        summary: the callback that keeps ``summary.json``. sweep: the name of the sweep this run belongs to, if any.

    Raises:
        UserError: anything the user can put right.
    """
    training, settings = config.training, config.trainer
    device = resolve_device(settings.accelerator)
    precision = resolve_precision(settings.precision, device)
    ranks = settings.devices * settings.num_nodes
    prepared = _prepare(cfg, config)
    model_config = config.model_config(prepared.tokenizer.vocab_size)
    windows = training.windows_per_step(model_config.seq_len)
    with user_errors():
        micro_windows = training.micro_windows(model_config.seq_len, windows // ranks, device)
        k_schedule = config.k_schedule.schedule(training.steps, training.batch_tokens)
        lr_schedule = config.lr_schedule.schedule(training.steps, training.batch_tokens)
    data = TokenData(
        prepared,
        seq_len=model_config.seq_len,
        seed=config.seed,
        block_windows=config.data.block_windows,
        steps=training.steps,
        windows_per_step=windows,
        val_windows=micro_windows,
        max_val_tokens=config.data.val_tokens,
        num_workers=config.data.num_workers,
    )
    L.seed_everything(config.seed, workers=True, verbose=False)
    module = TopKLM(
        model_config,
        config.optimizer,
        steps=training.steps,
        tokens_per_step=training.batch_tokens,
        log_every=training.log_every,
        k_schedule=k_schedule,
        k_start=config.k_schedule.start,
        lr_schedule=lr_schedule,
        micro_windows=micro_windows,
        clip_grad_norm=training.clip_grad_norm,
        byte_lengths=torch.from_numpy(prepared.tokenizer.byte_lengths()),
        run_config=config.plain,
    )
    if settings.compile:
        _compile(module, device)
    chosen = [_instantiate(node) for node in (cfg.callbacks or {}).values() if node is not None]
    samples = next((c for c in chosen if isinstance(c, Samples)), None)
    if samples is not None:
        samples.encode = lambda text: [prepared.tokenizer.eot_id, *prepared.tokenizer.encode([text])[0]]
        samples.decode = prepared.tokenizer.decode
    interrupt = Interrupt()
    peak = peak_flops(device, precision)
    loggers = build_loggers(config.logger, run.path, config.plain, summary.content["wandb_id"], sweep)
    trainer = L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings.strategy, ranks),
        precision=precision,  # type: ignore[arg-type]  # checked by TrainerConfig
        deterministic=settings.deterministic,
        max_steps=training.steps,
        log_every_n_steps=training.log_every,
        val_check_interval=training.eval_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=loggers,
        # In this order: what may stop the run, what measures it, what sums it up; checkpoints when all else is done.
        callbacks=[
            interrupt,
            Throughput(peak * ranks if peak else None),
            *(c for c in chosen if not isinstance(c, Checkpoints)),
            summary,
            *(c for c in chosen if isinstance(c, Checkpoints)),
        ],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.path,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return Parts(prepared, data, module, trainer, loggers, interrupt, samples)


def _prepare(cfg: DictConfig, config: RunConfig) -> Prepared:
    source = _instantiate(cfg.data.source)
    log.info(
        "data: %s; tokenizer: %s",
        source.name,
        config.tokenizer.path or f"byte-level BPE of {config.tokenizer.vocab_size} tokens",
    )
    return prepare(source, config.tokenizer, config.data.val_fraction, config.data.cache_dir)


@contextmanager
def _own_words() -> Iterator[None]:
    """Hydra wraps what a constructor raises; a user's mistake is told in the constructor's own words."""
    try:
        yield
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, TypeError)):
            raise UserError(str(cause).splitlines()[0]) from error
        raise UserError(" ".join(str(error).split())) from error


def _instantiate(node: DictConfig) -> Any:
    with _own_words():
        return instantiate(node, _convert_="all")


def _strategy(name: str, ranks: int) -> str | Strategy:
    if ranks > 1 and name in ("auto", "ddp"):
        # Buffers hold k, which every rank sets alike, and counters of what fired, which each rank must keep to itself.
        return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return name


def _compile(module: TopKLM, device: str) -> None:
    obstacle = compile_obstacle(device)
    if obstacle is not None:
        log.warning("trainer.compile=true, but %s: training goes on without.", obstacle)
        return
    for block in module.model.blocks:
        block.compile()  # in place: parameters keep their names, and equal blocks share one compilation
