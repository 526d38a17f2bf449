"""What activation checkpointing saves and costs: the memory of a training step and its time.

A step is one micro-batch of the run, forward and backward, with clipping and the run's optimizer, at the final k. Every
figure is measured. On a GPU it is what PyTorch's allocator says; on a CPU every allocation and release that PyTorch's
profiler saw, which leaves out what libraries keep for themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import profiler

from ..model import TopKTransformer
from ..model.block import Block
from ..model.boundary import pack, pays
from ..model.config import CHECKPOINTING
from ..training.compiling import compile_blocks
from ..training.config import RunConfig
from ..training.hardware import resolve_device, resolve_precision
from ..training.optim import build_optimizer
from ..training.precision import parameters_to_bfloat16
from .timing import Plot, Result, Row, interleave

VOCAB_SIZE = 4096  # for this alone: no tokenizer is needed
FORWARD_IS_DONE = "topklm: forward is done"
MB = 1e6


@dataclass
class Usage:
    """Bytes on top of what was there before a step, parameters and optimizer: held when the forward pass is done, and
    the most at any time, gradients included."""

    held: int = 0
    peak: int = 0


class Contender:
    """The run's model with one way of checkpointing, and a step of it."""

    def __init__(self, how: str, config: RunConfig, device: str, precision: str) -> None:
        torch.manual_seed(config.seed)
        model_config = config.model_config(config.tokenizer.vocab_size or VOCAB_SIZE)
        self.how, self.device = how, device
        self.model = TopKTransformer(model_config).to(device)
        self.model.set_checkpointing(how)
        if precision == "bf16-true":
            parameters_to_bfloat16(self.model)
        if config.trainer.compile:
            compile_blocks(self.model)
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")
        self.optimizer = build_optimizer(self.model, config.optimizer)
        windows = config.training.windows_per_step(model_config.seq_len) // config.trainer.ranks
        micro = config.training.micro_windows(model_config.seq_len, windows, device)
        self.ids = torch.randint(0, model_config.vocab_size, (micro, model_config.seq_len + 1)).to(device)

    def step(self, forward_is_done: Callable[[], None] = lambda: None) -> None:
        with self.autocast:
            loss = self.model.loss(self.ids[:, :-1], self.ids[:, 1:])
        forward_is_done()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def boundary_bytes(self) -> int:
        """What is kept of the residual stream between two blocks for the backward pass, over all such places."""
        sizes = []

        def measure(block: Block, inputs: Any, x_btd: Tensor) -> None:
            k = block.topk_mlp.most_kept if block.topk_mlp is not None and self.how == "block_sparse" else None
            packed = k is not None and pays(x_btd.shape[-1], k, x_btd.element_size())
            sizes.append(pack(x_btd, cast(int, k)).nbytes if packed else x_btd.nbytes)

        hooks = [block.register_forward_hook(measure) for block in list(self.model.blocks)[:-1]]
        with torch.compiler.set_stance("force_eager"), torch.no_grad(), self.autocast:
            self.model.loss(self.ids[:, :-1], self.ids[:, 1:])
        for hook in hooks:
            hook.remove()
        return sum(sizes)

    def usage(self) -> Usage:
        """Of one step; the first makes the optimizer's state and compiles, so there must have been one."""
        found = Usage()
        with (_cuda if self.device == "cuda" else _cpu)(found) as forward_is_done:
            self.step(forward_is_done)
        return found


@contextmanager
def _cuda(found: Usage) -> Iterator[Callable[[], None]]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def forward_is_done() -> None:
        found.held = torch.cuda.memory_allocated() - before

    yield forward_is_done
    found.peak = torch.cuda.max_memory_allocated() - before


@contextmanager
def _cpu(found: Usage) -> Iterator[Callable[[], None]]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on stderr when it starts and stops

    def forward_is_done() -> None:
        with profiler.record_function(FORWARD_IS_DONE):
            pass

    with profiler.profile(profile_memory=True) as seen:
        yield forward_is_done
    allocated = 0
    for event in sorted(seen.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":  # the profiler's name for an allocation, and for a release, which is negative
            allocated += event.nbytes()
            found.peak = max(found.peak, allocated)
        elif event.name() == FORWARD_IS_DONE:
            found.held = allocated


def memory_benchmark(config: RunConfig, rounds: int) -> Result:
    """Measures every way of checkpointing at the run's settings.

    Returns:
        One row for each: MB that a step takes on top of what stays, at its peak and held when the forward pass is done,
        MB of the residual stream between blocks, ms of a step, and its speed over that without checkpointing.
    """
    device = resolve_device(config.trainer.accelerator)
    precision = resolve_precision(config.trainer.precision, device)
    contenders = {how: Contender(how, config, device, precision) for how in CHECKPOINTING}
    timings = interleave({how: contender.step for how, contender in contenders.items()}, rounds)
    rows: list[Row] = []
    for how, contender in contenders.items():
        usage = contender.usage()
        rows.append(
            {
                "contender": how,
                "peak MB": usage.peak / MB,
                "held MB": usage.held / MB,
                "boundary MB": contender.boundary_bytes() / MB,
                "ms per step": 1000 * timings[how].median,
                "vs none": timings[how].speed_over(timings["none"]),
            }
        )
    of = {str(row["contender"]): row for row in rows}
    dense, packed = (float(of[how]["boundary MB"]) for how in ("block", "block_sparse"))
    less = float(of["none"]["held MB"]) / float(of["block_sparse"]["held MB"])
    findings = [
        f"packed, the residual stream between blocks takes {dense / packed:.2f} times fewer bytes" if packed else "",
        f"after the forward pass, block_sparse holds {less:.2f} times fewer bytes than no checkpointing",
    ]
    tokens = contenders["none"].ids[:, 1:].numel()
    title = f"memory: {config.plain['model']['name']}, micro-batch of {tokens} tokens, {precision} on {device}"
    return Result(title, rows, [finding for finding in findings if finding], Plot(y="peak MB"))
