"""The memory that a training step needs, found by taking the step with tensors that have shapes and no data.

The run's own code is what is watched: model, loss, optimizer. So the figure follows whatever they do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..model import ModelConfig, TopKTransformer, attention, document_numbers, loss
from ..schedules import KSchedule
from ..training.optim import build_optimizer
from ..training.precision import parameters_to_bfloat16
from ..training.sections import OptimizerConfig


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights, gradients, optimizer: what stays. activations: what the step needs on top at its worst moment: what is
            kept for backward, and temporaries.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make, as long as they live.

    Attributes:
        now, peak: bytes alive, and the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, nbytes: int) -> None:
        self.now -= nbytes


def step_memory(
    model_config: ModelConfig,
    optimizer_config: OptimizerConfig,
    *,
    micro_windows: int,
    micro_batches: int,
    precision: str,
    documents: bool,
    on_gpu: bool,
    checkpointing: str = "none",
    k_schedule: KSchedule | None = None,
) -> Memory:
    """The memory of an optimizer step in eager mode; torch.compile needs less.

    Args:
        micro_windows: windows per forward pass. micro_batches: forward passes per step. precision: Lightning's name.
        documents: attention stays inside documents. on_gpu: take the ways that the code takes on a GPU (attention in
            one kernel at any length, larger chunks of logits) and not those of a CPU. checkpointing: what is kept for
            the backward pass, see ``TopKTransformer.set_checkpointing``. k_schedule: the run's, whose largest k
            counts; None stands for the final k.
    """
    with FakeTensorMode(), LiveBytes() as live, _ways_of_a_gpu() if on_gpu else nullcontext():
        model = TopKTransformer(model_config)
        model.set_checkpointing(checkpointing)
        if k_schedule is not None:
            model.set_k(_largest_k(model, k_schedule))
        if precision == "bf16-true":
            parameters_to_bfloat16(model)
        weights = live.now
        optimizer = build_optimizer(model, optimizer_config)
        masters = live.now - weights
        peaks = []
        for step in range(2):  # the optimizer's state is there from the second step on
            ids_bl = torch.zeros(micro_windows, model_config.seq_len + 1, dtype=torch.int64)
            for _ in range(min(2, micro_batches)):  # the second meets the gradients of the first
                inputs, targets = ids_bl[:, :-1], ids_bl[:, 1:]
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                    mean = model.loss(inputs, targets, document_numbers(inputs, 0) if documents else None)
                mean.backward()
                del mean
            peaks.append(live.peak)
            if step == 0:
                gradients = sum(p.grad.untyped_storage().nbytes() for p in model.parameters() if p.grad is not None)
                before = live.now
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                state = masters + live.now - before
            optimizer.zero_grad()
    # Temporaries of the optimizer's own step count if they are more than those of the model's.
    return Memory(weights, gradients, state, max(0, live.peak - weights - gradients - state))


def _largest_k(model: TopKTransformer, schedule: KSchedule) -> list[int]:
    """Of each site over the run: k goes from its first value to its last and nowhere else."""
    blocks = model.config.topk.topk_layers(model.config.n_layers)
    first = (schedule.k(0.0, blocks.index(site.layer), site.width, site.k_final) for site in model.sites)
    return [max(k, site.k_final) for k, site in zip(first, model.sites, strict=True)]


@contextmanager
def _ways_of_a_gpu() -> Iterator[None]:
    written_out, chunk = attention.WRITTEN_OUT_POSITIONS, loss.CHUNK_BYTES["cpu"]
    attention.WRITTEN_OUT_POSITIONS, loss.CHUNK_BYTES["cpu"] = 0, loss.CHUNK_BYTES_ELSEWHERE
    try:
        yield
    finally:
        attention.WRITTEN_OUT_POSITIONS, loss.CHUNK_BYTES["cpu"] = written_out, chunk
