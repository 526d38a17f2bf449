"""Products of a matrix with vectors that are mostly zero, which read the columns that meet a non-zero and no others.

``y = W x`` is a sum of columns of W, each times an entry of x, so a TopK state of d entries needs k columns in d. One
vector at a time a product takes as long as its weights take to arrive from memory, and k / d of them arrive sooner. The
columns must lie contiguous for that: ``by_columns`` makes such a copy. The result is that of the dense product, to
rounding, for any x whatever: what is not zero is looked up in x itself, and k is never trusted. On a CPU the sum is a
small C program, compiled and cached as TopK's search is; on a GPU it is a Triton kernel. Where neither runs PyTorch
gathers the columns. Shapes: n vectors, i inputs, o outputs.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from .implementations import TRITON_DTYPES, has_triton
from .topk_threshold import NAMES, NoCompiler, compiled

PRODUCTS_PER_THREAD = 1 << 16  # below this a second thread costs more than it brings


def by_columns(weight_oi: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy (i, o) of a matrix as ``nn.Linear`` has it, in which the columns of the matrix lie contiguous."""
    return weight_oi.detach().to(dtype).t().contiguous()


def column_product(x_ni: Tensor, columns_io: Tensor) -> Tensor:
    """``x_ni @ columns_io``, reading the rows of ``columns_io`` that meet a non-zero; (n, o).

    Sums are float32 where the two are bfloat16. Without gradient.

    Raises:
        TypeError: they differ in type. ValueError: they do not fit, or ``columns_io`` is not contiguous.
    """
    if x_ni.dtype != columns_io.dtype:
        raise TypeError(f"a column product wants one type, not {x_ni.dtype} and {columns_io.dtype}.")
    if columns_io.shape[0] != x_ni.shape[1] or not columns_io.is_contiguous():
        raise ValueError(f"columns {tuple(columns_io.shape)} must be contiguous and fit vectors {tuple(x_ni.shape)}.")
    how = implementation(x_ni.device, x_ni.dtype)
    if how == "compiled":
        return _compiled(x_ni.contiguous(), columns_io)
    if how == "triton":
        from . import column_product_triton  # imports triton, which a CPU does not need

        return column_product_triton.column_product(x_ni.contiguous(), columns_io)
    return torch.cat([_gathered(x_i, columns_io) for x_i in x_ni]) if len(x_ni) else x_ni @ columns_io


def implementation(device: torch.device, dtype: torch.dtype) -> str:
    """``compiled``, ``triton`` or ``gathered``: what ``column_product`` runs there."""
    if device.type == "cpu" and dtype in NAMES and _library() is not None:
        return "compiled"
    if device.type == "cuda" and dtype in TRITON_DTYPES and has_triton():
        return "triton"
    return "gathered"


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        library = compiled(Path(__file__).with_suffix(".c"))
    except NoCompiler:  # TopK itself warns of that
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for name in NAMES.values():
        product = getattr(library, f"column_product_{name}")
        product.argtypes, product.restype = [pointer] * 5 + [size] * 4 + [ctypes.c_int], None
    return library


def _compiled(x_ni: Tensor, columns_io: Tensor) -> Tensor:
    n, inputs = x_ni.shape
    outputs = columns_io.shape[1]
    y_no = torch.empty(n, outputs, dtype=x_ni.dtype)
    scratch = torch.empty(2, inputs, dtype=torch.int32)
    index = scratch.data_ptr()
    getattr(_library(), f"column_product_{NAMES[x_ni.dtype]}")(
        x_ni.data_ptr(),
        columns_io.data_ptr(),
        y_no.data_ptr(),
        index,
        index + 4 * inputs,
        n,
        inputs,
        outputs,
        PRODUCTS_PER_THREAD,
        torch.get_num_threads(),
    )
    return y_no


def _gathered(x_i: Tensor, columns_io: Tensor) -> Tensor:
    """(1, o). Waits for the device, as the number of non-zeros is the size of what is gathered."""
    index = x_i.nonzero().squeeze(1)
    return x_i[index][None] @ columns_io.index_select(0, index)
