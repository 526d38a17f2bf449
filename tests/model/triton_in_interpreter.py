"""The GPU kernels of TopK against the reference, run on a CPU by triton's interpreter.

``test_topk_triton.py`` starts this in a process of its own, since triton must be told before it is imported.

The interpreter rounds floats to 16 bits in a way of its own, so sums that are 16 bits wide, and gradients, are made of
eighths here, which need no rounding.
"""

import math

import pytest
import torch
import triton

from topklm.model import topk_triton
from topklm.model.activation import topk_with_stats

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
SPECIAL = [0.0, -0.0, math.nan, -math.nan, math.inf, -math.inf, 2.0, 2.0, -2.0, -2.0]
ROWS = 5


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """One program takes two tiles, so that a search starts where another ended, and time is spent on little else."""
    monkeypatch.setattr(topk_triton, "tiling", lambda d: (4, max(16, triton.next_power_of_2(d)), 1))
    monkeypatch.setattr(topk_triton, "_multiprocessors", lambda device: 1)
    monkeypatch.setattr(topk_triton, "WARPS_PER_MULTIPROCESSOR", 1)


def eighths(*shape: int) -> torch.Tensor:
    return torch.randint(-60, 60, shape) / 8


def rows_with_specials(d: int, dtype: torch.dtype, exact: bool) -> torch.Tensor:
    """Values that seldom tie (unless ``exact``), that often do, with what breaks comparisons, and all equal."""
    x = (eighths(ROWS, d) if exact else torch.randn(ROWS, d)).to(dtype)
    x[0] = eighths(d).to(dtype)
    x[-2, : len(SPECIAL)] = torch.tensor(SPECIAL[:d], dtype=dtype)
    x[-1] = 1.0
    return x


def compare(x, k, added=None, grad_type=None, **options):
    """Output, mask and counts to the bit, sums to rounding, of rows without NaN; and the gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, added) if tensor is not None]
    results = []
    for impl in ("reference", "triton"):
        y, passes, fired, sums = torch.ops.topklm.topk(
            leaves[0], torch.tensor(k), options.get("select", "value"), options.get("relu", False), "masked", impl,
            True, options.get("bias"), added=leaves[1] if added is not None else None,
        )  # fmt: skip
        gradients = torch.autograd.grad(y, leaves, eighths_like(y))
        results.append((y.detach(), passes, fired, sums, *gradients))
    expected, found = results
    if added is None:
        assert torch.equal(*(y.view(BITS[y.dtype]) for y in (expected[0], found[0])))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    if found[0].isfinite().all():
        torch.testing.assert_close(found[3], expected[3])
    for got, wanted in zip(found[4:], expected[4:], strict=True):
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)


def eighths_like(y: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return (torch.randint(-60, 60, y.shape, generator=generator) / 8).to(y.dtype)


WIDTHS = [1, 3, 100, 257, 1000]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
# select, relu, whether there is a bias, type of what is added (None: nothing), k as a share of d
CASES = [
    ("value", False, False, None, 0.12),
    ("value", False, False, torch.bfloat16, 0.12),
    ("value", True, True, torch.float32, 0.12),
    ("magnitude", False, True, None, 0.5),
    ("magnitude", True, False, torch.float16, 0.12),
    ("value", False, False, torch.float32, 0.0),
    ("magnitude", False, False, None, 1.0),
    ("value", True, False, None, 1.5),
]


@pytest.mark.parametrize("d", WIDTHS)
def test_as_the_reference(d):
    """Every case is met at some width, and so is every type."""
    torch.manual_seed(d)
    for turn in range(4):
        place = 4 * WIDTHS.index(d) + turn
        dtype, (select, relu, biased, added_type, share) = TYPES[place % 3], CASES[place % len(CASES)]
        sum_type = dtype if added_type is None else torch.promote_types(dtype, added_type)
        exact = added_type is not None and sum_type != torch.float32
        bias = torch.randint(-8, 8, (d,)) / 4 if biased else None
        added = None if added_type is None else eighths(ROWS, d).to(added_type)
        x = rows_with_specials(d, dtype, exact)
        compare(x, max(1, round(share * d)), added, select=select, relu=relu, bias=bias)


def test_rows_unlike_each_other(monkeypatch):
    """The threshold of the row before is a poor guess: sizes apart by many powers of ten, and of either sign. A row a
    tile, shared by three programs."""
    monkeypatch.setattr(topk_triton, "tiling", lambda d: (1, 64, 1))
    monkeypatch.setattr(topk_triton, "_multiprocessors", lambda device: 3)
    torch.manual_seed(0)
    size = torch.tensor([1e-18, 1e12, 1.0, -1e-3, 1e5, 0.0, 1e-9, 1e18])[:, None]
    compare(torch.rand(8, 48) * size, 5)
    compare(torch.randn(8, 48) * size - 2 * size, 7, select="magnitude")


def test_without_statistics_and_without_rows():
    x = torch.randn(6, 40)
    y, fired, sums = topk_with_stats(x, 4, impl="triton", stats=False)
    assert torch.equal(y, topk_with_stats(x, 4, impl="reference")[0])
    assert fired.numel() == sums.numel() == 0
    y, fired, sums = topk_with_stats(x[:0], 4, impl="triton")
    assert y.shape == (0, 40)
    assert fired.sum() == sums.sum() == 0


def test_in_the_larger_type_of_three():
    """float16 and bfloat16 add up to float32, which is neither's."""
    compare(eighths(4, 20).half(), 5, eighths(4, 20).bfloat16())


def test_straight_through_and_estimated():
    """What is not the kernel's to do uses its choice all the same."""
    x, added, g = torch.randn(6, 40), torch.randn(6, 40), torch.randn(6, 40)
    for options in ({"grad": "ste", "ste_scale": torch.tensor(0.5), "ste_reach": 2.0}, {"grad": "ste", "relu": True}):
        results = []
        for impl in ("reference", "triton"):
            leaf = x.clone().requires_grad_()
            y = topk_with_stats(leaf, 4, impl=impl, added=added, **options)[0]
            results.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_operator_keeps_torchs_rules():
    x = torch.randn(3, 20, requires_grad=True)
    added = torch.randn(3, 20).bfloat16().requires_grad_()
    given = (x, torch.tensor(3), "value", False, "masked", "triton", True, None, None, None, None, added)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.topklm.topk.default, given, test_utils=checks)
