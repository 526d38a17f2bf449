"""TopK on a GPU by an exact threshold search: one kernel forward, one backward. Importing this imports triton.

Forward, each program takes tiles of rows in turn: it adds the residual, turns the sums into integers that sort as they
do, brackets the k-th largest of each row by counting how many reach a pivot, and writes what is kept, a bit per entry,
and what the telemetry counts, all in one pass over memory. A bracket is first sought around the threshold of the tile
before, since tokens have thresholds near each other, and then halved; it closes as soon as exactly k reach it. So the
tile before decides how long the search takes and never what it finds. k is read on the device, and nothing is read on
the host, so a launch can be captured in a CUDA graph.

With TRITON_INTERPRET=1 set before triton is imported the kernels run on a CPU, slowly: for tests.
Shapes: n tokens, d neurons, w = ceil(d / 8) bytes; in kernels r rows of a tile, c its columns, of which d are there.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bits import packed_width
from .topk_reference import sum_type

INTERPRETED = bool(triton.knobs.runtime.interpret)

# Chosen by reasoning and not by measurement: 32 entries a thread keep keys and counters in registers, one warp to a row
# of up to 1024 needs no shared memory to count, and registers let 8 warps be at once on a multiprocessor.
ENTRIES_PER_WARP = 1024
WARPS_PER_MULTIPROCESSOR = 8


@triton.jit
def _sort_key(x, MAGNITUDE: tl.constexpr):
    """int32 that sort as the floats of ``x`` do: NaN of either sign above everything, -0 equal to +0."""
    greatest: tl.constexpr = 0x7FFFFFFF if x.dtype == tl.float32 else 0x7FFF
    narrow_infinity: tl.constexpr = 0x7F80 if x.dtype == tl.bfloat16 else 0x7C00
    infinity: tl.constexpr = 0x7F800000 if x.dtype == tl.float32 else narrow_infinity
    if x.dtype == tl.float32:  # noqa: SIM108 - only one of the two casts compiles
        bits = x.to(tl.int32, bitcast=True)
    else:
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
    magnitude = bits & greatest
    key = magnitude if MAGNITUDE else tl.where(bits < 0, -magnitude, magnitude)
    return tl.where(magnitude > infinity, greatest, key)


@triton.jit
def _forward_kernel(
    x_ptr, added_ptr, k_ptr, bias_ptr, y_ptr, bits_ptr, fired_ptr, sums_ptr, n, d,
    MAGNITUDE: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pointers: x (n, d), added (n, d) or None, k (1,), bias (d,) or None, y (n, d), bits (n, w); both or neither,
    fired (d,) zeros and sums (programs, 3)."""
    out_type = y_ptr.dtype.element_ty
    # Keys of 16-bit values take 16 bits; those of biased scores and of float32 all 32.
    greatest: tl.constexpr = 0x7FFF if out_type.primitive_bitwidth == 16 and bias_ptr is None else 0x7FFFFFFF
    column_c = tl.arange(0, BLOCK)
    there_c = column_c < d
    byte_b = tl.arange(0, BLOCK // 8)
    width = (d + 7) // 8
    k = tl.minimum(tl.load(k_ptr), d).to(tl.int32)

    guess_r = tl.zeros((ROWS,), tl.int64)
    reach_r = tl.zeros((ROWS,), tl.int64)
    fired_rc = tl.zeros((ROWS, BLOCK), tl.int32)
    energy_r = tl.zeros((ROWS,), tl.float32)
    threshold_r = tl.zeros((ROWS,), tl.float32)

    first = tl.program_id(0)
    for tile in range(first, tl.cdiv(n, ROWS), tl.num_programs(0)):
        row_r = tile * ROWS + tl.arange(0, ROWS)
        begin_r1 = row_r.to(tl.int64)[:, None] * d
        here_rc = (row_r < n)[:, None] & there_c[None, :]
        x_rc = tl.load(x_ptr + begin_r1 + column_c[None, :], here_rc, 0.0)
        if added_ptr is not None:
            added_rc = tl.load(added_ptr + begin_r1 + column_c[None, :], here_rc, 0.0)
            x_rc = (x_rc.to(tl.float32) + added_rc.to(tl.float32)).to(out_type)
        score_rc = tl.abs(x_rc.to(tl.float32)) if MAGNITUDE else x_rc.to(tl.float32)
        if bias_ptr is None:
            key_rc = _sort_key(x_rc, MAGNITUDE)
        else:
            score_rc += tl.load(bias_ptr + column_c, there_c, 0.0)[None, :]
            key_rc = _sort_key(score_rc, False)
        key_rc = tl.where(there_c[None, :], key_rc, -greatest - 1)  # below all keys and all pivots

        # What is looked for is in [low, high]; count_r keys reach low. A side that no pivot has given yet is sought in
        # growing steps around the guess.
        low_r = tl.full((ROWS,), -greatest - 1, tl.int64)
        high_r = tl.full((ROWS,), greatest, tl.int64)
        count_r = tl.zeros((ROWS,), tl.int32) + d
        low_found_r = reach_r == 0
        high_found_r = reach_r == 0
        pivot_r = guess_r - reach_r
        step_r = reach_r * 2
        high_r = tl.where(count_r == k, low_r, high_r)
        while tl.max(high_r - low_r, 0) > 0:
            middle_r = low_r + (high_r - low_r + 1) // 2
            pivot_r = tl.where(low_found_r & high_found_r, middle_r, pivot_r)
            pivot_r = tl.minimum(tl.maximum(pivot_r, tl.minimum(low_r + 1, high_r)), high_r)
            reached_r = tl.sum((key_rc >= pivot_r.to(tl.int32)[:, None]).to(tl.int32), 1)
            enough_r = reached_r >= k
            open_r = low_r < high_r
            low_found_r = low_found_r | enough_r
            high_found_r = high_found_r | ~enough_r
            count_r = tl.where(open_r & enough_r, reached_r, count_r)
            low_r = tl.where(open_r & enough_r, pivot_r, low_r)
            high_r = tl.where(open_r & ~enough_r, pivot_r - 1, high_r)
            high_r = tl.where(count_r == k, low_r, high_r)
            pivot_r = tl.where(enough_r, low_r + step_r, high_r - step_r)
            step_r = step_r * 4
        # The next tile looks where this one found, twice as far around as thresholds have moved of late.
        moved_r = tl.abs(low_r - guess_r)
        reach_r = tl.where(reach_r == 0, moved_r // 4, (reach_r + 2 * moved_r) // 2) + 1
        guess_r = low_r

        threshold_r1 = low_r.to(tl.int32)[:, None]
        kept_rc = (key_rc >= threshold_r1) & there_c[None, :]
        excess_r = count_r - k
        if tl.max(excess_r, 0) > 0:  # more tie at the threshold than there is room for: the first ones stay
            tie_rc = ((key_rc == threshold_r1) & there_c[None, :]).to(tl.int32)
            room_r = tl.sum(tie_rc, 1) - excess_r
            kept_rc = kept_rc & ((tie_rc == 0) | (tl.cumsum(tie_rc, 1) <= room_r[:, None]))
        if fired_ptr is not None:
            smallest_r = tl.min(tl.where(kept_rc, score_rc, float("inf")), 1)
            threshold_r += tl.where(row_r < n, smallest_r, 0.0)
        if RELU:  # in float32, since the interpreter of triton 3.9 compares bfloat16 as integers
            kept_rc = kept_rc & ~(x_rc.to(tl.float32) <= 0.0)
        y_rc = tl.where(kept_rc, x_rc, 0.0).to(out_type)
        tl.store(y_ptr + begin_r1 + column_c[None, :], y_rc, here_rc)
        place_8 = tl.arange(0, 8)
        byte_rb = tl.sum(tl.reshape(kept_rc.to(tl.int32), (ROWS, BLOCK // 8, 8)) << place_8[None, None, :], 2)
        byte_ptr = bits_ptr + row_r.to(tl.int64)[:, None] * width + byte_b[None, :]
        tl.store(byte_ptr, byte_rb.to(tl.uint8), (row_r < n)[:, None] & (byte_b < width)[None, :])
        if fired_ptr is not None:
            fired_rc += ((y_rc != 0.0) & here_rc).to(tl.int32)
            out_rc, in_rc = y_rc.to(tl.float32), x_rc.to(tl.float32)
            total_r = tl.maximum(tl.sum(in_rc * in_rc, 1), 1.1754943508222875e-38, propagate_nan=tl.PropagateNan.ALL)
            energy_r += tl.where(row_r < n, tl.sum(out_rc * out_rc, 1) / total_r, 0.0)
    if fired_ptr is not None:
        # Integers add up to the same in any order, so counts are exact however the programs come to the end; floats
        # are added up afterwards, in one order.
        fired_c = tl.sum(fired_rc, 0)
        tl.atomic_add(fired_ptr + column_c, fired_c, there_c & (fired_c > 0), sem="relaxed")
        tl.store(sums_ptr + first * 3, tl.sum(energy_r, 0))
        tl.store(sums_ptr + first * 3 + 1, tl.sum(threshold_r, 0))
        tl.store(sums_ptr + first * 3 + 2, tl.sum(fired_c, 0).to(tl.float32))


@triton.jit
def _backward_kernel(grad_ptr, bits_ptr, out_ptr, second_ptr, n, d, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Pointers: grad, out (n, d), bits (n, w), second (n, d) of another type or None. A program takes one tile."""
    row_r11 = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    byte_b1 = tl.arange(0, BLOCK // 8)[None, :, None]
    place_8 = tl.arange(0, 8)[None, None, :]
    column_b8 = 8 * byte_b1 + place_8
    width = (d + 7) // 8
    byte_rb1 = tl.load(bits_ptr + row_r11 * width + byte_b1, (row_r11 < n) & (byte_b1 < width), 0)
    here_rb8 = (row_r11 < n) & (column_b8 < d)
    passes_rb8 = ((byte_rb1.to(tl.int32) >> place_8) & 1) != 0
    entry_rb8 = row_r11 * d + column_b8
    grad_rb8 = tl.load(grad_ptr + entry_rb8, here_rb8 & passes_rb8, 0.0)  # what does not pass need not be read
    tl.store(out_ptr + entry_rb8, grad_rb8, here_rb8)
    if second_ptr is not None:
        tl.store(second_ptr + entry_rb8, grad_rb8.to(second_ptr.dtype.element_ty), here_rb8)


def tiling(d: int) -> tuple[int, int, int]:
    """Rows and columns of a tile for rows of d entries, and its warps."""
    block = max(16, triton.next_power_of_2(d))
    rows = max(1, ENTRIES_PER_WARP // block)
    return rows, block, min(16, max(1, rows * block // ENTRIES_PER_WARP))


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def topk_forward(
    x_nd: Tensor,
    added_nd: Tensor | None,
    k: Tensor,
    select: str,
    relu: bool,
    stats: bool,
    bias_d: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Same contract as ``topk_reference.topk_forward``, of ``x + added``, for contiguous float16, bfloat16 or float32
    (each its own) on a GPU; ``bias_d`` is contiguous float32. What was kept comes packed, as by ``bits.pack``."""
    n, d = x_nd.shape
    rows, block, warps = tiling(d)
    at_once = _multiprocessors(x_nd.device) * max(1, WARPS_PER_MULTIPROCESSOR // warps)
    programs = min(triton.cdiv(n, rows), at_once)
    dtype = sum_type(x_nd, added_nd)
    y_nd = torch.empty(n, d, dtype=dtype, device=x_nd.device)
    bits_nw = torch.empty(n, packed_width(d), dtype=torch.uint8, device=x_nd.device)
    fired_d = torch.zeros(d if stats else 0, dtype=torch.int32, device=x_nd.device)
    sums = torch.empty(programs if stats else 0, 3, dtype=torch.float32, device=x_nd.device)
    if programs and d:
        k = k.to(x_nd.device, non_blocking=True)
        counters = (fired_d, sums) if stats else (None, None)
        with torch.cuda.device_of(x_nd):
            _forward_kernel[(programs,)](
                x_nd, added_nd, k, bias_d, y_nd, bits_nw, *counters, n, d,
                MAGNITUDE=select == "magnitude", RELU=relu, ROWS=rows, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return y_nd, bits_nw, fired_d, sums.sum(0) if stats else sums.flatten()


def mask_gradient(grad_nd: Tensor, bits_nw: Tensor, second: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """``grad`` where a bit is set, zero elsewhere; and the same as type ``second``, unless None."""
    n, d = grad_nd.shape
    rows, block, warps = tiling(d)
    out_nd = torch.empty_like(grad_nd)
    second_nd = None if second is None else torch.empty(n, d, dtype=second, device=grad_nd.device)
    if n and d:
        with torch.cuda.device_of(grad_nd):
            _backward_kernel[(triton.cdiv(n, rows),)](
                grad_nd, bits_nw, out_nd, second_nd, n, d, ROWS=rows, BLOCK=block, num_warps=warps
            )
    return out_nd, second_nd
