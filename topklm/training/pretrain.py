"""``pretrain(cfg)``: a composed config in, a finished run directory out."""

from __future__ import annotations

import functools
import logging
import math
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from rich.console import Console

from ..callbacks import NonFiniteLoss
from ..errors import Interrupted, UserError, run_argument
from ..files import disk_errors
from ..output import output_is_broken
from .again import Standing, default_settings, standing
from .assemble import Parts, assemble
from .config import RunConfig
from .hardware import is_main_process
from .init_from import load_origin, with_origin
from .loggers import finish_loggers, log_picture, wandb_run_id
from .plots import draw_run
from .report import print_report
from .resume import config_to_go_on, step_to_continue, stored_config
from .rundir import RunDirectory
from .summary import Summary

log = logging.getLogger(__name__)


def pretrain(cfg: DictConfig) -> float:
    """Trains the model that ``cfg`` describes, or continues the run that ``cfg.run`` (or ``cfg.resume``) names.

    Called from a Hydra job, whose output directory becomes the run directory. A sweep's job whose directory holds it
    already is skipped if it is finished, and goes on if it is not.

    Returns:
        The validation loss at the end with the final k, in nats per token: what a sweep minimises.

    Raises:
        UserError: anything the user can put right. Interrupted: a signal stopped the run.
    """
    started = time.monotonic()
    _quieten()
    job = HydraConfig.get()
    sweep = Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else None
    run = RunDirectory(Path(job.runtime.output_dir))
    resume = cfg.run or cfg.resume
    overrides, defaults = job.overrides.task, functools.cache(default_settings)
    try:
        if resume and Path(resume).resolve() != run.path.resolve():
            raise UserError(
                f"hydra.run.dir={run.path} is for a new run, and {run_argument(resume)} continues one in its own "
                f"directory: leave one of them out."
            )
        if not sweep and job.sweeper.get("params"):
            search = job.runtime.choices.get("hparams_search")
            what = f"hparams_search={search}" if search else "hydra.sweeper.params"
            raise UserError(f"{what} describes a sweep of several runs: add -m, or leave it out for a single run.")
        again = bool(sweep) and run.config.exists()
        if again:
            again = standing(run, with_origin(cfg, overrides, run.path), defaults) is not Standing.NEW
        if is_main_process():
            run.claim(resume=bool(resume) or again)
        if resume:
            cfg = stored_config(Path(resume), with_origin(cfg, overrides, run.path), overrides, defaults)
        elif again:
            cfg = config_to_go_on(run.path, cfg, defaults)
        else:
            cfg = with_origin(cfg, overrides)
        config = RunConfig.from_hydra(cfg)
        if sweep and config.trainer.ranks > 1:
            raise UserError(
                "A sweep cannot use several devices per job: each of their processes would start the sweep anew. "
                "Use trainer.devices=1 with -m, or start the jobs one by one without -m."
            )
        if is_main_process() and not (resume or again):
            run.write_config(cfg)
        return _train(cfg, config, run, sweep, started)
    except UserError as error:
        if not sweep:
            run.discard()
        elif run.is_claimed and not run.summary.exists():
            Summary(run, {}).end("failed", str(error))
        raise
    finally:
        run.release()


def _train(cfg: DictConfig, config: RunConfig, run: RunDirectory, sweep: str | None, started: float) -> float:
    before = run.read_summary()
    if before.get("status") == "finished":
        loss = before.get("val_loss_final_k") or math.nan
        what = "skipped" if sweep else "there is nothing to continue"
        log.info("%s is finished, with a validation loss of %.4f: %s.", run.path, loss, what)
        return loss
    start = {name: before.get(name) for name in ("init_from", "val_loss_at_start", "val_loss_final_k_at_start")}
    wandb_id = before.get("wandb_id") or wandb_run_id()
    summary = Summary(run, {"seed": config.seed, "wandb_id": wandb_id, **start})
    parts: Parts | None = None
    step: int | None = None
    try:
        step = step_to_continue(run.last, config)
        if step is not None:
            summary.carry(before)
            log.info("continuing at step %d of %d", step, config.training.steps)
        elif before:
            log.info("no checkpoint was written: beginning anew")
        if is_main_process():
            run.forget_after(-1 if step is None else step)
        parts = _assemble(cfg, config, run, summary, sweep)
        if parts.trainer.is_global_zero:
            parts.prepared.tokenizer.save(run.tokenizer)
        if step is None and config.init_from is not None:
            summary.content["init_from"] = load_origin(config, parts.module.model, parts.prepared.tokenizer)
        summary.write()
        if step is None and config.eval_at_start:
            _validate_at_start(parts, summary)
        stopped = _fit(parts, run, resume=step is not None)
        if parts.trainer.is_global_zero and config.logger.plots:
            _draw(parts, run, config.training.batch_tokens)
    except KeyboardInterrupt as stop:
        if not isinstance(stop, Interrupted):
            stop = Interrupted(f"Interrupted. {_how_to_go_on(run)}")
        _close(parts, summary, "interrupted", str(stop), step)
        raise stop from None
    except BaseException as error:
        _close(parts, summary, "failed", str(error).partition("\n")[0] or type(error).__name__, step)
        if isinstance(error, NonFiniteLoss):
            raise UserError(
                f"{error}. Lower optimizer.lr={config.optimizer.lr} or lengthen lr_schedule.warmup."
            ) from error
        if _is_out_of_memory(error):
            raise UserError(
                f"There is not enough memory ({str(error).partition(chr(10))[0]}): take a smaller "
                f"training.micro_batch_tokens, or trainer.activation_checkpointing=block_sparse; plan=true says what a "
                f"step needs."
            ) from error
        went_on = parts is not None and parts.module.global_step > (step or 0)
        if isinstance(error, UserError) and before and not went_on and is_main_process():
            run.write_summary(before)  # a mistake in continuing a run says nothing of the run
        raise
    _close(parts, summary, "finished", stopped)
    if parts.trainer.is_global_zero:
        samples = parts.samples.latest if parts.samples else []
        print_report(Console(), summary.content, parts.prepared.xz, samples, run.path, time.monotonic() - started)
    return parts.module.latest["val/loss_final_k"]


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU, has no memory left. PyTorch has no class of its own for the CPU's error."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    )


def _assemble(cfg: DictConfig, config: RunConfig, run: RunDirectory, summary: Summary, sweep: str | None) -> Parts:
    """The parts of the run. What a library's constructor refuses, such as a strategy of Lightning's, is the user's."""
    try:
        return assemble(cfg, config, run, summary, sweep)
    except UserError:
        raise
    except (ValueError, MisconfigurationException) as error:
        raise UserError(str(error)) from error


def _validate_at_start(parts: Parts, summary: Summary) -> None:
    """Validates before the first step, with the k that training begins with and with the final one, as step 0."""
    parts.module.model.set_k(parts.module.k_at(0.0))
    with _ctrl_c():
        parts.trainer.validate(parts.module, parts.data, verbose=False)
    for name in ("val_loss", "val_loss_final_k"):
        summary.content[f"{name}_at_start"] = summary.content[name]
    summary.write()


def _fit(parts: Parts, run: RunDirectory, resume: bool) -> str | None:
    """Trains and validates. Why it ended before the last step, where a callback such as Lightning's EarlyStopping
    wanted that."""
    trainer, module = parts.trainer, parts.module
    with _ctrl_c():
        trainer.fit(module, parts.data, ckpt_path=run.last if resume else None, weights_only=True)
    early = module.global_step < module.steps
    if early and parts.interrupt.received is not None:
        why = f" by {parts.interrupt.received.name}"
        if output_is_broken():
            why = ", as nothing reads its output any more,"
        raise Interrupted(f"Stopped{why} after step {module.global_step} of {module.steps}. {_how_to_go_on(run)}")
    if module.validated_at != module.global_step:
        with _ctrl_c():
            trainer.validate(module, parts.data, verbose=False)
    return f"A callback ended it after step {module.global_step} of {module.steps}." if early else None


def _draw(parts: Parts, run: RunDirectory, tokens_per_step: int) -> None:
    """Draws the pictures of the run, and shows them to W&B and TensorBoard."""
    for logger in parts.loggers:
        logger.save()  # the row that is being gathered
    with disk_errors(run.plots, f"Free some space, then continue with {run_argument(run.path)}"):
        pictures = draw_run(run.path, tokens_per_step, run.plots)
    for picture in pictures:
        log_picture(parts.loggers, f"plots/{picture.stem}", picture, parts.module.global_step)


def _how_to_go_on(run: RunDirectory) -> str:
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN:
        return f"Continue with {run_argument(run.path)}"
    where = shlex.quote(f"hydra.sweep.dir={job.sweep.dir}")
    return f"Go on with the sweep by the same command and {where}, or with this job alone by {run_argument(run.path)}"


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Lightning makes an exit with code 1 of a KeyboardInterrupt; this makes one of it again."""
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise


def _close(
    parts: Parts | None, summary: Summary, status: str, reason: str | None = None, continued_at: int | None = None
) -> None:
    if parts is not None:
        parts.prepared.close()
        if parts.module.global_step >= (continued_at or 0):  # the checkpoint to continue from has been loaded
            summary.update(parts.trainer, parts.module)
    summary.end(status, reason)  # first: closing W&B may take minutes, in which anything may happen
    if parts is not None:
        finish_loggers(parts.loggers, summary.content)


def _quieten() -> None:
    """Silences what Lightning says of itself; what matters to a run is shown by its callbacks."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "The '.*' does not have many workers",  # reading a memory map needs none
        "You're resuming from a checkpoint that ended before the epoch ended",  # the sampler knows where to go on
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message)
