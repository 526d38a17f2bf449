"""The product by columns as two GPU kernels: one finds the non-zeros of each vector, one adds up the columns they meet.

The number of non-zeros stays on the device, so nothing waits for it; sums are float32, each in an order of its own that
no other program touches. Imported only where the package triton is. Shapes: n vectors, i inputs, o outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Chosen by reasoning and not by measurement: enough programs at a few thousand outputs to keep many multiprocessors
# reading, and rows of a tile that are whole cache lines.
BLOCK = 1024  # inputs looked at together
COLUMNS, OUTPUTS = 16, 128  # of a tile of the weights


@triton.jit
def _find_kernel(x_ptr, index_ptr, value_ptr, count_ptr, inputs, BLOCK: tl.constexpr):
    """A program a vector: the places of its non-zeros in rising order, their values, and how many there are."""
    row = tl.program_id(0).to(tl.int64)
    found = 0
    for start in range(0, inputs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * inputs + i, mask=i < inputs, other=0.0).to(tl.float32)
        nonzero = (x != 0.0).to(tl.int32)  # NaN is kept too
        place = row * inputs + found + tl.cumsum(nonzero, 0) - 1
        tl.store(index_ptr + place, i, mask=nonzero == 1)
        tl.store(value_ptr + place, x, mask=nonzero == 1)
        found += tl.sum(nonzero, 0)
    tl.store(count_ptr + row, found)


@triton.jit
def _sum_kernel(
    index_ptr, value_ptr, count_ptr, columns_ptr, y_ptr, inputs, outputs, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr
):
    """A program some outputs of one vector."""
    row = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    count = tl.load(count_ptr + row)
    total = tl.zeros([COLUMNS, OUTPUTS], tl.float32)
    for start in range(0, count, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        index = tl.load(index_ptr + row * inputs + j, mask=j < count, other=0).to(tl.int64)
        value = tl.load(value_ptr + row * inputs + j, mask=j < count, other=0.0)
        there = (j < count)[:, None] & (o < outputs)[None, :]
        column = tl.load(columns_ptr + index[:, None] * outputs + o[None, :], mask=there, other=0.0).to(tl.float32)
        total += tl.where(there, value[:, None] * column, 0.0)
    tl.store(y_ptr + row * outputs + o, tl.sum(total, 0).to(y_ptr.dtype.element_ty), mask=o < outputs)


def column_product(x_ni: Tensor, columns_io: Tensor) -> Tensor:
    """``x_ni @ columns_io``, (n, o): contiguous, of one type of at most 32 bits, on a GPU (or interpreted)."""
    n, inputs = x_ni.shape
    outputs = columns_io.shape[1]
    index_ni = torch.empty(n, inputs, dtype=torch.int32, device=x_ni.device)
    value_ni = torch.empty(n, inputs, dtype=torch.float32, device=x_ni.device)
    count_n = torch.empty(n, dtype=torch.int32, device=x_ni.device)
    y_no = torch.empty(n, outputs, dtype=x_ni.dtype, device=x_ni.device)
    if n == 0:
        return y_no
    with torch.cuda.device_of(x_ni):
        _find_kernel[(n,)](x_ni, index_ni, value_ni, count_n, inputs, BLOCK)
        grid = (triton.cdiv(outputs, OUTPUTS), n)
        _sum_kernel[grid](index_ni, value_ni, count_n, columns_io, y_no, inputs, outputs, COLUMNS, OUTPUTS)
    return y_no
