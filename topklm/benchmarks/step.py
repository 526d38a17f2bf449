"""The cost of a training step: with TopK and telemetry, without telemetry, the dense twin, and the Llama of
``transformers``.

Every contender takes the same batch through forward, backward, clipping and an optimizer step, with the micro-batches
of a training run: in the run's precision with the run's optimizer, and against Llama in float32 with fused AdamW. The
telemetry of the first contender is read and reset once in ``log_every`` steps, as in a run.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model import ModelConfig, TopKConfig, TopKTransformer
from ..training.config import OptimizerConfig, RunConfig
from ..training.hardware import resolve_device, resolve_precision
from ..training.optim import build_optimizer
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
    for site in model.sites:
        site.record = name == "topk"
    if config.trainer.compile:
        for block in model.blocks:
            block.compile()

    return _stepper(
        model, TopKTransformer.loss, build_optimizer(model, optimizer), config, model_config, precision, device
    )


def _stepper(
    model: nn.Module,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    model_config: ModelConfig,
    precision: str,
    device: str,
) -> Callable[[], None]:
    """A call that trains ``model`` for STEPS_PER_ROUND steps on random tokens."""
    model.train()
    length = model_config.seq_len
    windows = config.training.windows_per_step(length)
    micro = config.training.micro_windows(length, windows, device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model_config.vocab_size, (windows, length + 1), generator=generator).to(device)
    count = itertools.count(1)

    def call() -> None:
        for _ in range(STEPS_PER_ROUND):
            for micro_bl in ids.split(micro):
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                    part = loss(model, micro_bl[:, :-1], micro_bl[:, 1:]) / (windows // micro)
                part.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if isinstance(model, TopKTransformer) and next(count) % config.training.log_every == 0:
                for site in model.sites:
                    site.interval()
                    site.reset_interval()

    return call


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
