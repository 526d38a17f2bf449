"""From a checked config to the parts of a run: data, module, callbacks, loggers, trainer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig

from ..callbacks import Checkpoints, Interrupt, Samples, Throughput, check_together
from ..data import Prepared, Source, prepare
from ..data.datamodule import TokenData
from ..errors import UserError
from ..model import ModelConfig
from ..model.implementations import resolve_impl
from .checkpoint_io import AtomicCheckpointIO
from .compiling import compile_blocks
from .config import RunConfig
from .hardware import compile_obstacle, peak_flops, resolve_device, resolve_precision
from .loggers import build_loggers
from .module import TopKLM
from .precision import BFloat16Weights
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
    chosen = _callbacks(cfg)
    check_together(chosen)
    device = resolve_device(config.trainer.accelerator)
    precision = resolve_precision(config.trainer.precision, device)
    if config.topk.sites:  # before the data: an implementation that cannot run here is a mistake of the command
        dtype = torch.bfloat16 if precision == BFloat16Weights.precision else torch.float32
        resolve_impl(config.topk.impl, torch.device(device), dtype)
    prepared = _prepare(cfg, config)
    try:
        model_config = config.model_config(prepared.tokenizer.vocab_size)
        windows = config.training.windows_per_step(model_config.seq_len)
        micro_windows = config.training.micro_windows(model_config.seq_len, windows // config.trainer.ranks, device)
        data = _data(config, prepared, model_config.seq_len, windows, micro_windows)
        module = _module(config, prepared, model_config, micro_windows)
        module.model.set_checkpointing(config.trainer.activation_checkpointing)
        if config.trainer.compile:
            _compile(module, device)
        samples = next((c for c in chosen if isinstance(c, Samples)), None)
        if samples is not None:
            samples.encode = lambda text: [prepared.tokenizer.eot_id, *prepared.tokenizer.encode([text])[0]]
            samples.decode = prepared.tokenizer.decode
        interrupt = Interrupt()
        peak = peak_flops(device, precision)
        loggers = build_loggers(config.logger, run.path, config.plain, summary.content["wandb_id"], sweep)
        # In this order: what may stop the run, what measures it, what sums it up; checkpoints when all else is done.
        callbacks = [
            interrupt,
            Throughput(peak * config.trainer.ranks if peak else None),
            *(c for c in chosen if not isinstance(c, Checkpoints)),
            summary,
            *(c for c in chosen if isinstance(c, Checkpoints)),
        ]
        trainer = _trainer(config, run, device, precision, loggers, callbacks)
    except BaseException:
        prepared.close()
        raise
    return Parts(prepared, data, module, trainer, loggers, interrupt, samples)


def _data(config: RunConfig, prepared: Prepared, seq_len: int, windows: int, micro_windows: int) -> TokenData:
    return TokenData(
        prepared,
        seq_len=seq_len,
        seed=config.seed,
        block_windows=config.data.block_windows,
        steps=config.training.steps,
        windows_per_step=windows,
        val_windows=micro_windows,
        packing=config.data.packing,
        order=config.data.order,
        max_val_tokens=config.data.count("max_val_tokens"),
        num_workers=config.data.num_workers,
    )


def _module(config: RunConfig, prepared: Prepared, model_config: ModelConfig, micro_windows: int) -> TopKLM:
    training, tokenizer = config.training, prepared.tokenizer
    L.seed_everything(config.seed, workers=True, verbose=False)
    return TopKLM(
        model_config,
        config.optimizer,
        steps=training.steps,
        tokens_per_step=training.batch_tokens,
        log_every=training.log_every,
        k_schedule=config.k_schedule_of(model_config),
        lr_schedule=config.lr_schedule.schedule(training.steps, training.batch_tokens),
        micro_windows=micro_windows,
        clip_grad_norm=training.clip_grad_norm,
        z_loss=training.z_loss,
        byte_lengths=torch.from_numpy(tokenizer.byte_lengths()),
        eot_id=tokenizer.eot_id if config.data.attend == "document" else None,
        padded=config.data.packing == "best_fit",
        val_sources=prepared.sources,
        run_config=config.plain,
    )


def _trainer(
    config: RunConfig,
    run: RunDirectory,
    device: str,
    precision: str,
    loggers: list[Logger],
    callbacks: list[L.Callback],
) -> L.Trainer:
    training, settings = config.training, config.trainer
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings.strategy, settings.ranks),
        precision=None if precision == BFloat16Weights.precision else precision,  # type: ignore[arg-type]  # checked
        deterministic=settings.deterministic,
        max_steps=training.steps,
        log_every_n_steps=training.log_every,
        val_check_interval=training.eval_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *([BFloat16Weights()] if precision == BFloat16Weights.precision else [])],
        default_root_dir=run.path,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The callbacks of ``cfg.callbacks``; null leaves one out."""
    made = {
        name: _instantiate(node, f"callbacks.{name}")
        for name, node in (cfg.callbacks or {}).items()
        if node is not None
    }
    for name, callback in made.items():
        if not isinstance(callback, L.Callback):
            raise UserError(f"callbacks.{name} is not a callback: give the class of a new one as its _target_.")
    return list(made.values())


def _prepare(cfg: DictConfig, config: RunConfig) -> Prepared:
    source, data = instantiate_source(cfg), config.data
    log.info("data: %s; tokenizer: %s", source.name, config.tokenizer.described)
    return prepare(
        source,
        config.tokenizer,
        data.split,
        data.cache_dir,
        background=data.stream,
        writers=data.writers,
        cache_gb=data.cache_gb,
    )


def instantiate_source(cfg: DictConfig) -> Source:
    """The source of ``cfg.data.source``. Raises UserError in the source's own words."""
    return _instantiate(cfg.data.source, "data.source")


def _instantiate(node: DictConfig, name: str) -> Any:
    """Makes what the node ``name`` describes. Hydra wraps what a constructor raises; a user's mistake is told in the
    constructor's own words, after the name of the node where the words do not name a setting."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        own = isinstance(cause, (ValueError, TypeError))
        words = str(cause).splitlines()[0] if own else " ".join(str(error).split())
        named = isinstance(cause, ValueError)  # those of topklm name the override; a TypeError is Python's own
        raise UserError(words if named else f"{name}: {words}") from error


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
    torch.compiler.reset()  # a sweep's jobs share a process, and what is compiled for one counts for none of the others
    compile_blocks(module.model)
