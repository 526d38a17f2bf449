"""The implementations of TopK: which of them runs where, and running it.

Shapes: n tokens, d neurons, w = ceil(d / 8) bytes.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from types import ModuleType

import torch
from torch import Tensor

from . import topk_reference, topk_statistical, topk_threshold
from .bits import pack
from .topk_reference import sum_type

TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def resolve_impl(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that ``impl`` means for tensors on ``device``, of a sum's type where there is one: never
    ``auto``. Raises ValueError for one that cannot run there."""
    on_cpu = device.type == "cpu"
    in_c, in_triton = on_cpu and dtype in topk_threshold.NAMES, dtype in TRITON_DTYPES
    if impl == "threshold" and not in_c:
        raise ValueError(
            f"topk.impl=threshold runs on a CPU in float32 or bfloat16, not on {device.type} in {dtype}: use "
            f"topk.impl=auto."
        )
    if impl == "triton":
        if not has_triton():
            raise ValueError(
                "topk.impl=triton needs the package triton: pip install 'topklm[triton]', or use topk.impl=auto."
            )
        if not in_triton or not (device.type == "cuda" or (on_cpu and triton_kernels().INTERPRETED)):
            raise ValueError(
                f"topk.impl=triton runs on a GPU in float16, bfloat16 or float32, not on {device.type} in {dtype}: use "
                f"topk.impl=auto."
            )
    if impl == "auto":
        if device.type == "cuda" and in_triton and has_triton():
            return "triton"
        return "threshold" if in_c and _compiled_search_works() else "reference"
    return impl


@functools.cache
def has_triton() -> bool:
    """Whether the package triton is there; CUDA builds of PyTorch bring it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def triton_kernels() -> ModuleType:
    """The module of the GPU kernels."""
    from . import topk_triton  # imports triton, which a CPU does not need

    return topk_triton


@functools.cache
def _compiled_search_works() -> bool:
    try:
        topk_threshold.library()
    except topk_threshold.NoCompiler as error:
        warnings.warn(f"TopK runs by a sort, several times slower than the compiled search: {error}.", stacklevel=2)
        return False
    return True


def topk_forward(
    x_nd: Tensor,
    added_nd: Tensor | None,
    k: Tensor,
    select: str,
    relu: bool,
    impl: str,
    stats: bool,
    bias_d: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``topk_reference.topk_forward`` of ``x + added`` by the implementation ``impl``, with what was kept packed."""
    impl = resolve_impl(impl, x_nd.device, sum_type(x_nd, added_nd))
    if impl == "triton":
        return triton_kernels().topk_forward(x_nd, added_nd, k, select, relu, stats, bias_d)
    if added_nd is not None and (impl != "threshold" or not {x_nd.dtype, added_nd.dtype} <= set(topk_threshold.NAMES)):
        x_nd, added_nd = x_nd + added_nd, None
    if impl == "threshold":
        return topk_threshold.topk_forward(x_nd, added_nd, int(k), select, relu, stats, bias_d)
    module = topk_statistical if impl == "statistical" else topk_reference
    y_nd, kept_nd, fired_d, sums = module.topk_forward(x_nd, k, select, relu, stats, bias_d)
    return y_nd, pack(kept_nd), fired_d, sums
