"""The cost of a training step: with TopK and telemetry, without telemetry, the dense twin, and the Llama of
``transformers``.

Every contender takes the same batch through forward, backward, clipping and an optimizer step, with the micro-batches
of a training run: in the run's precision with the run's optimizer, and against Llama in float32 with fused AdamW. The
first contender runs the telemetry's callbacks after each step, which log a row to a ``metrics.csv`` once in
``log_every`` steps, as in a run.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..callbacks import DeadNeurons, GradientNorms, Sparsity
from ..callbacks.base import Watched
from ..errors import UserError
from ..model import ModelConfig, TopKConfig, TopKTransformer
from ..training.compiling import compile_blocks
from ..training.config import RunConfig
from ..training.hardware import resolve_device, resolve_precision
from ..training.loggers import CSVLog
from ..training.optim import build_optimizer
from ..training.precision import parameters_to_bfloat16
from ..training.sections import OptimizerConfig
from .timing import Result, Timing, interleave

STEPS_PER_ROUND = 2
VOCAB_SIZE = 4096  # for timing alone: no tokenizer is needed


def step_benchmark(config: RunConfig, rounds: int) -> Result:
    """Times the contenders in the run's precision, and the dense twin against Llama in float32.

    Returns:
        One row per contender: name, precision, ms and tokens/s of a step, and its speed over the dense twin's; and what
        the telemetry costs.
    """
    device = resolve_device(config.trainer.accelerator)
    precision = resolve_precision(config.trainer.precision, device)
    model_config = config.model_config(config.tokenizer.vocab_size or VOCAB_SIZE)
    rows, findings = [], []
    for mode, optimizer, names in (
        (precision, config.optimizer, ("topk", "topk, no telemetry", "dense twin")),
        ("32-true", OptimizerConfig(name="adamw"), ("dense twin", "transformers Llama")),
    ):
        contenders = {name: _contender(name, model_config, config, optimizer, mode, device) for name in names}
        timings = interleave(contenders, rounds)
        rows += [_row(timing, timings["dense twin"], mode, config) for timing in timings.values()]
        if "topk" in timings:
            cost = 1 / timings["topk"].speed_over(timings["topk, no telemetry"]) - 1
            findings.append(f"telemetry adds {cost:+.1%} to a step, the median of {rounds} paired rounds")
    title = f"step: {config.plain['model']['name']}, batch of {config.training.batch_tokens} tokens"
    return Result(title, rows, findings)


def _row(timing: Timing, dense: Timing, precision: str, config: RunConfig) -> dict[str, str | float]:
    step = timing.median / STEPS_PER_ROUND
    return {
        "contender": timing.name,
        "precision": precision,
        "ms per step": 1000 * step,
        "tokens/s": config.training.batch_tokens / step,
        "vs dense twin": timing.speed_over(dense),
    }


def _contender(
    name: str, model_config: ModelConfig, config: RunConfig, optimizer: OptimizerConfig, precision: str, device: str
) -> Callable[[], None]:
    torch.manual_seed(config.seed)
    if name == "transformers Llama":
        llama = _llama(model_config).to(device)
        adamw = torch.optim.AdamW(llama.parameters(), lr=optimizer.lr, fused=True)
        return _stepper(llama, _llama_loss, adamw, config, model_config, precision, device)
    if name == "dense twin":
        model_config = dataclasses.replace(model_config, topk=TopKConfig(sites=()))
    model = TopKTransformer(model_config).to(device)
    model.set_checkpointing(config.trainer.activation_checkpointing)
    telemetry = Telemetry(model, config) if name == "topk" else None
    for site in model.sites:
        site.record = telemetry is not None
    if config.trainer.compile:
        compile_blocks(model)
    if precision == "bf16-true":
        parameters_to_bfloat16(model)
    made = build_optimizer(model, optimizer)
    return _stepper(model, TopKTransformer.loss, made, config, model_config, precision, device, telemetry)


def _stepper(
    model: nn.Module,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    model_config: ModelConfig,
    precision: str,
    device: str,
    telemetry: Telemetry | None = None,
) -> Callable[[], None]:
    """A call that trains ``model`` for STEPS_PER_ROUND steps on random tokens."""
    model.train()
    length = model_config.seq_len
    windows = config.training.windows_per_step(length)
    micro = config.training.micro_windows(length, windows, device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model_config.vocab_size, (windows, length + 1), generator=generator).to(device)

    def call() -> None:
        for _ in range(STEPS_PER_ROUND):
            for micro_bl in ids.split(micro):
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                    part = loss(model, micro_bl[:, :-1], micro_bl[:, 1:]) / (windows // micro)
                part.backward()
            if telemetry is not None:
                telemetry.tell("on_before_optimizer_step", optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if telemetry is not None:
                telemetry.step()

    return call


class Telemetry(Watched):
    """The telemetry of a run without the run: the callbacks, and in the place of module and trainer what they ask of
    them. Dead neurons are logged in each row, though a run logs none in its first tokens."""

    world_size, global_rank, eot_id = 1, 0, None
    loss = grad_norm = torch.zeros(())

    def __init__(self, model: TopKTransformer, config: RunConfig) -> None:
        self.model, self.steps = model, config.training.steps
        self.tokens_per_step, self.log_every = config.training.batch_tokens, config.training.log_every
        self.taken = 0
        self.row, self.latest = {}, {}
        self.folder = tempfile.TemporaryDirectory()  # goes with this object
        self.log = CSVLog(Path(self.folder.name) / "metrics.csv")
        self.callbacks = (Sparsity(), DeadNeurons(window_tokens=1), GradientNorms())
        self.tell("on_train_start")

    @property
    def global_step(self) -> int:
        return self.taken

    @property
    def is_log_step(self) -> bool:
        return self.is_logged(self.taken)

    def is_logged(self, step: int) -> bool:
        return step % self.log_every == 0

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        self.row.update(metrics)

    def add_histogram(self, name: str, counts: np.ndarray, edges: np.ndarray) -> None:
        raise AssertionError("histograms belong to validation, which is not timed")

    def forget_gradients(self, parameter: Tensor, where: Tensor) -> None:
        raise AssertionError("nothing is drawn anew in a benchmark")

    def log_row(self) -> None:
        if self.row:
            self.log.log_metrics(self.row, step=self.taken)
            self.row = {}

    def step(self) -> None:
        """What follows a step."""
        self.taken += 1
        self.tell("on_train_batch_end")
        self.log_row()

    def tell(self, hook: str, *args: Any) -> None:
        stand_in: Any = self
        for callback in self.callbacks:
            getattr(callback, hook)(stand_in, stand_in, *args)


def _llama(c: ModelConfig) -> nn.Module:
    """The same shape in ``transformers``: its Llama has no QK-norm, so the dense twin does slightly more work."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UserError("what=step compares with transformers: pip install 'topklm[bench]'.") from error
    assert c.d_ff is not None
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.d_model,
            intermediate_size=c.d_ff,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            max_position_embeddings=c.seq_len,
            tie_word_embeddings=c.tied,
            use_cache=False,
        )
    )


def _llama_loss(model: nn.Module, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
    logits = model(input_ids=ids_bt).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets_bt.flatten())
