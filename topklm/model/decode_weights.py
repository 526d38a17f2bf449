"""Weights made ready for generation: cast to the type of the products once, and laid out by columns where what they
meet is sparse.

A TopK state passes an RMSNorm, which keeps zeros, and then meets a matrix: the state after a block's MLP the query, key
and value projection of the next block (or the head, after the last), the state after attention the MLP's gate and up
projection, the MLP's neurons its down projection. Token by token those products need k columns in d. A prompt is many
tokens at once, together they need nearly all columns, and it stays dense. Shapes: b batch, t position, n vectors,
i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .block import Block
from .column_product import by_columns, column_product, implementation
from .site import TopKSite
from .transformer import TopKTransformer

# From `scripts/benchmark.py what=decode`, see docs/results.md. Columns win up to the whole width; half of it is kept to
# be on the safe side on machines not measured. Below so many weights the call is what takes the time.
LARGEST_SHARE = 0.5
SMALLEST_MATRIX = 1 << 16
# A copy by columns takes as long as some 30 products. It must pay within what is generated.
TOKENS_TO_PAY_A_COPY = 64


def break_even(inputs: int, outputs: int, dtype: torch.dtype, device: torch.device, batch: int = 1) -> int:
    """The largest number of non-zeros at which ``batch`` vectors are better multiplied column by column; 0 for never.

    A rule and no measurement on the spot, so that a seed gives the same text each time. On a GPU nothing has been
    measured yet, so the rule says never.
    """
    if device.type != "cpu" or implementation(device, dtype) != "compiled" or inputs * outputs < SMALLEST_MATRIX:
        return 0
    return int(LARGEST_SHARE * inputs / batch)


@dataclass(frozen=True)
class Choice:
    """How a matrix that meets a TopK state is multiplied, token by token.

    Attributes:
        matrix: its name in the model. inputs, outputs: its size.
        k: entries that the state keeps at most. break_even: k up to which columns pay here.
        by_columns: what was chosen. implementation: what the product by columns runs on here.
        bytes: of its copy by columns; 0 without.
    """

    matrix: str
    inputs: int
    outputs: int
    k: int
    break_even: int
    by_columns: bool
    implementation: str
    bytes: int


@dataclass(frozen=True)
class _Copy:
    tensor: Tensor
    source: tuple[object, ...]  # by which a change of the weights since is seen


class DecodeWeights:
    """What ``generate`` needs of a model's weights, made at first use and kept: make one for many calls.

    Weights that change are copied anew at the next call, unless the change leaves no trace: one through ``.data``, or
    by a fused optimizer (those of ``topklm.training`` leave theirs). A copy by columns takes the memory of its matrix,
    in the type of the products; under autocast all others have a copy in that type as well.

    Args:
        model: whose weights.
        sparse: True takes columns wherever the input is a TopK state, False nowhere, ``auto`` where it pays: see
            ``break_even``.
        tokens: how many will be generated; None: so many that what copies take does not count. ``auto`` makes none for
            few.

    Attributes:
        choices: of the last use, one per matrix that meets a TopK state.

    Raises:
        ValueError: ``sparse`` is something else.
    """

    def __init__(self, model: TopKTransformer, sparse: bool | str = "auto", tokens: int | None = None) -> None:
        if sparse not in (True, False, "auto"):
            raise ValueError(f"sparse={sparse}: give True, False or 'auto'.")
        self.model, self.sparse, self.tokens = model, sparse, tokens
        self.choices: list[Choice] = []
        self._copies: dict[tuple[str, bool], _Copy] = {}

    @property
    def bytes(self) -> int:
        """What the copies take."""
        return sum(copy.tensor.nbytes for copy in self._copies.values())

    @contextmanager
    def in_use(self, batch: int) -> Iterator[torch.dtype]:
        """Inside a ``with`` block the model multiplies by these weights, without gradient; yields the type of the
        products: that of autocast where it is on, else of the weights. Autocast has nothing left to do and is off
        inside, so that it does not ask at every operation."""
        weight = self.model.head.weight
        device = weight.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else weight.dtype
        readers = sparse_readers(self.model)
        self.choices = [self._choose(name, *reader, batch, dtype) for name, reader in readers.items()]
        columns = {choice.matrix for choice in self.choices if choice.by_columns}
        before: dict[nn.Linear, Callable[[Tensor], Tensor] | None] = {}
        try:
            for name, linear in self.model.named_modules():
                if isinstance(linear, nn.Linear) and (name in columns or linear.weight.dtype != dtype):
                    before[linear] = vars(linear).get("forward")
                    copy = self._copy(name, linear, dtype, name in columns)
                    vars(linear)["forward"] = _forward(copy, name in columns)
            with torch.autocast(device.type, enabled=False) if autocast else nullcontext():
                yield dtype
        finally:
            for linear, forward in before.items():
                if forward is None:
                    vars(linear).pop("forward", None)
                else:
                    vars(linear)["forward"] = forward

    def _choose(self, name: str, linear: nn.Linear, site: TopKSite, batch: int, dtype: torch.dtype) -> Choice:
        outputs, inputs = linear.weight.shape
        device = linear.weight.device
        k = min(int(site.k), inputs)
        most = break_even(inputs, outputs, dtype, device, batch)
        few = self.tokens is not None and self.tokens < TOKENS_TO_PAY_A_COPY
        chosen = k <= most and not few if self.sparse == "auto" else bool(self.sparse)
        size = inputs * outputs * dtype.itemsize if chosen else 0
        return Choice(name, inputs, outputs, k, most, chosen, implementation(device, dtype), size)

    def _copy(self, name: str, linear: nn.Linear, dtype: torch.dtype, columns: bool) -> Tensor:
        weight = linear.weight
        version = object() if weight.is_inference() else weight._version  # inference tensors count no changes
        source = (weight.data_ptr(), version, weight.device, dtype)
        kept = self._copies.get((name, columns))
        if kept is None or kept.source != source:
            made = by_columns(weight, dtype) if columns else weight.detach().to(dtype)
            kept = self._copies[name, columns] = _Copy(made, source)
        return kept.tensor


def sparse_readers(model: TopKTransformer) -> dict[str, tuple[nn.Linear, TopKSite]]:
    """The matrices whose input has zeros wherever a TopK site's output has, by name, each with that site."""
    meets: dict[str, tuple[nn.Linear, TopKSite | None]] = {}
    entering: TopKSite | None = None  # the last to act on the residual stream before the block
    for layer, block in enumerate(cast(Iterable[Block], model.blocks)):
        meets[f"blocks.{layer}.attn.qkv"] = block.attn.qkv, entering
        meets[f"blocks.{layer}.mlp.gate_up"] = block.mlp.gate_up, block.topk_attn
        meets[f"blocks.{layer}.mlp.down"] = block.mlp.down, block.mlp.topk
        entering = block.topk_mlp
    meets["head"] = model.head, entering
    return {name: (linear, site) for name, (linear, site) in meets.items() if site is not None}


def _forward(weight: Tensor, columns: bool) -> Callable[[Tensor], Tensor]:
    """What a Linear does with a copy of its weights: cast, (o, i), or by columns, (i, o)."""

    def after_cast(x_bti: Tensor) -> Tensor:
        return F.linear(x_bti.to(weight.dtype), weight)

    def from_columns(x_bti: Tensor) -> Tensor:
        b, t, inputs = x_bti.shape
        x_bti = x_bti.to(weight.dtype)
        return x_bti @ weight if t > 1 else column_product(x_bti.view(b, inputs), weight).view(b, t, -1)

    return from_columns if columns else after_cast
