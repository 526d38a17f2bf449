"""The cost of the TopK operator: every implementation that runs here, beside what PyTorch offers for the same.

All contenders add a residual and keep the k largest of each row: torch.topk with a scatter, a threshold by
torch.kthvalue (which keeps more where values tie at it), and the operator of this package, which counts what fires on
top. A copy of one tensor shows what memory gives. Bytes are those that must move however it is done: forward, both
addends are read and the output is written; backward, its gradient is read, and the addends' gradients are written, one
tensor where both have one type. What a contender moves beyond these shows as a smaller share of the copy's rate.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ..model.activation import topk_with_stats
from ..model.config import IMPL
from ..model.implementations import resolve_impl
from ..training.config import RunConfig
from ..training.hardware import resolve_device, resolve_precision
from .timing import Plot, Result, Row, Timing, interleave

WIDTHS = (256, 512, 1024, 2048, 4096)
SHARES = (16, 8, 4)  # k = d / share
ENTRIES = {"cpu": 1 << 21, "cuda": 1 << 26}  # tokens x d: a micro-batch's; on a GPU, far more than its caches hold
TYPES = {  # of the residual stream and of what is added to it
    "32-true": (torch.float32, torch.float32),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, torch.bfloat16),
}
SCATTER = "torch.topk + scatter"
PLOT = Plot(x="d", y="ms", series="contender", panels=("pass", "k"), log=True)


def topk_benchmark(config: RunConfig, rounds: int, shapes: list[list[int]] | None = None) -> Result:
    """Times the contenders forward, and forward and backward, in the types that the run's precision gives the residual
    stream and what is added to it.

    Args:
        shapes: [tokens, d, k] each; None for widths from 256 to 4096 with k of d/16, d/8 and d/4.

    Returns:
        One row per shape, pass and contender: its ms, GB/s of the bytes that must move and their share of the copy's,
        and its speed over torch.topk + scatter.
    """
    device = torch.device(resolve_device(config.trainer.accelerator))
    precision = resolve_precision(config.trainer.precision, device.type)
    types = TYPES[precision]
    impls = [name for name in IMPL if name != "auto" and _runs(name, device, torch.promote_types(*types))]
    rows: list[Row] = []
    for tokens, d, k in shapes or _default_shapes(device.type):
        rows += _measure(tokens, d, k, types, impls, device, rounds)
    first, second = (str(dtype).removeprefix("torch.") for dtype in types)
    auto = resolve_impl("auto", device, torch.promote_types(*types))
    over = min(row["vs torch.topk"] for row in rows if row["contender"] == auto and row["pass"] == "both")
    finding = f"{auto}, which topk.impl=auto takes here, is at least {over:.2f} times as fast as {SCATTER} both ways"
    return Result(f"topk: {first} stream + {second} branch on {device.type}", rows, [finding], PLOT)


def _default_shapes(device: str) -> list[list[int]]:
    entries = ENTRIES.get(device, ENTRIES["cpu"])
    return [[entries // d, d, d // share] for d, share in itertools.product(WIDTHS, SHARES)]


def _runs(impl: str, device: torch.device, dtype: torch.dtype) -> bool:
    try:
        resolve_impl(impl, device, dtype)
    except ValueError:
        return False
    return True


def _by_scatter(x: Tensor, added: Tensor, k: int) -> Tensor:
    total = x + added
    values, indices = total.topk(k)
    return torch.zeros_like(total).scatter(-1, indices, values)


def _by_kth_value(x: Tensor, added: Tensor, k: int) -> Tensor:
    total = x + added
    kth = total.detach().kthvalue(total.shape[-1] - k + 1, dim=-1, keepdim=True).values
    return torch.where(total >= kth, total, torch.zeros((), dtype=total.dtype, device=total.device))


def _by_operator(impl: str, k: Tensor) -> Callable[[Tensor, Tensor, int], Tensor]:
    return lambda x, added, _: topk_with_stats(x, k, impl=impl, added=added)[0]


def _measure(
    tokens: int,
    d: int,
    k: int,
    types: tuple[torch.dtype, torch.dtype],
    impls: list[str],
    device: torch.device,
    rounds: int,
) -> list[Row]:
    generator = torch.Generator(device).manual_seed(0)
    x, added = (
        torch.randn(tokens, d, device=device, generator=generator).to(dtype).requires_grad_() for dtype in types
    )
    grad = torch.randn(tokens, d, device=device, generator=generator).to(torch.promote_types(*types))
    on_device = torch.tensor(k, device=device)
    ways = {name: _by_operator(name, on_device) for name in impls}
    ways |= {SCATTER: _by_scatter, "kthvalue threshold": _by_kth_value}
    target = torch.empty_like(grad)

    def forward(way: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                way(x, added, k)

        return call

    def both(way: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[], None]:
        def call() -> None:
            torch.autograd.grad(way(x, added, k), (x, added), grad)

        return call

    x_bytes, added_bytes, sum_bytes = (tokens * d * tensor.element_size() for tensor in (x, added, grad))
    forward_bytes = x_bytes + added_bytes + sum_bytes
    backward_bytes = sum_bytes + sum(
        tokens * d * dtype.itemsize for dtype in {x.dtype, added.dtype}
    )  # both addends share a gradient of one type

    def copy() -> None:
        target.copy_(grad)

    rows: list[Row] = []
    for name, make, moved in (("forward", forward, forward_bytes), ("both", both, forward_bytes + backward_bytes)):
        contenders = {contender: make(way) for contender, way in ways.items()}
        timings = interleave({**contenders, "copy": copy}, rounds)
        copied = 2 * sum_bytes / timings["copy"].median
        for timing in timings.values():
            rate = (2 * sum_bytes if timing.name == "copy" else moved) / timing.median
            rows.append(_row(tokens, d, k, name, timing, rate, copied, timings[SCATTER]))
    return rows


def _row(tokens: int, d: int, k: int, name: str, timing: Timing, rate: float, copied: float, scatter: Timing) -> Row:
    return {
        "tokens": tokens,
        "d": d,
        "k": f"d/{d // k}" if d % k == 0 else str(k),
        "pass": name,
        "contender": timing.name,
        "ms": 1000 * timing.median,
        "GB/s": rate / 1e9,
        "of copy": rate / copied,
        "vs torch.topk": timing.speed_over(scatter),
    }
