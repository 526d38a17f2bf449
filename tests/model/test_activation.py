"""TopK against a plain sort: what is kept, what gradient flows, and that a moving k never recompiles."""

import itertools
import math
import statistics
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch._dynamo.testing import CompileCounter

from topklm.model import implementations, topk, topk_threshold
from topklm.model.activation import topk_with_stats
from topklm.model.implementations import resolve_impl

IMPLS = ["reference", "threshold"]
DTYPES = [torch.float32, torch.bfloat16]


def by_plain_sort(row: list[float], k: int, select: str) -> list[bool]:
    """The contract in Python: largest first, NaN above all, ties by lowest index."""

    def score(i: int) -> tuple[bool, float]:
        value = abs(row[i]) if select == "magnitude" else row[i]
        return (math.isnan(value), 0.0 if math.isnan(value) else value)

    order = sorted(range(len(row)), key=lambda i: (-score(i)[0], -score(i)[1], i))
    kept = set(order[:k])
    return [i in kept for i in range(len(row))]


# Few distinct values make ties common; the specials are what breaks comparisons.
values = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, math.nan, -math.nan, math.inf, -math.inf, 1e-40, 3e38]
) | st.floats(width=32)
matrices = hnp.arrays("float32", hnp.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=values)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=150, deadline=None)
@given(x=matrices, k=st.integers(1, 45), select=st.sampled_from(["value", "magnitude"]), dtype=st.sampled_from(DTYPES))
def test_keeps_what_a_plain_sort_keeps(impl, x, k, select, dtype):
    x = torch.from_numpy(x).to(dtype)
    y = topk(x, k, select=select, impl=impl)
    kept = torch.tensor([by_plain_sort(row, k, select) for row in x.tolist()])
    expected = torch.where(kept, x, torch.zeros((), dtype=dtype))
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(y.view(bits), expected.view(bits))


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=100, deadline=None)
@given(
    x=matrices, data=st.data(), k=st.integers(1, 45), select=st.sampled_from(["value", "magnitude"]),
    relu=st.booleans(), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_a_bias_has_a_part_in_the_choice_alone(impl, x, data, k, select, relu, dtype):
    """Chosen by the float32 sum of score and bias, ties by lowest index; what passes is x to the bit."""
    x = torch.from_numpy(x).to(dtype)
    few = st.sampled_from([0.0, 0.5, 1.0, 3.0]) | st.floats(-10, 10, width=32)
    bias = torch.tensor(data.draw(st.lists(few, min_size=x.shape[1], max_size=x.shape[1])))
    y, fired, sums = topk_with_stats(x, k, select=select, relu=relu, impl=impl, bias=bias)
    score = (x.abs() if select == "magnitude" else x).float() + bias
    kept = torch.tensor([by_plain_sort(row, k, "value") for row in score.tolist()])
    expected = torch.where(kept & ~(x <= 0) if relu else kept, x, torch.zeros((), dtype=dtype))
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert torch.equal(y.view(bits), expected.view(bits))
    assert torch.equal(fired, (expected != 0).sum(0).int())
    if x.isfinite().all() and x.abs().max() < 1e6:
        smallest = torch.where(kept, score, math.inf).amin(1)
        torch.testing.assert_close(sums[1], smallest.sum(), rtol=1e-4, atol=1e-3)


def test_no_bias_and_a_bias_of_zero_are_the_same():
    x = torch.randn(200, 64, dtype=torch.bfloat16)  # many ties
    for impl in IMPLS:
        for plain, biased in zip(
            topk_with_stats(x, 9, impl=impl), topk_with_stats(x, 9, impl=impl, bias=torch.zeros(64)), strict=True
        ):
            assert torch.equal(plain, biased)


def test_a_bias_of_another_kind_is_refused():
    for bias in (torch.zeros(5), torch.zeros(4, dtype=torch.float64), torch.zeros(1, 4)):
        with pytest.raises(TypeError, match="bias must be float32 of shape"):
            topk_with_stats(torch.randn(2, 4), 2, bias=bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("select", "relu"), [("value", False), ("magnitude", False), ("value", True)])
def test_statistical_keeps_what_exceeds_the_normal_quantile(select, relu, dtype):
    x = (torch.randn(50, 96, generator=torch.Generator().manual_seed(0)) * 3 + 0.5).to(dtype)
    y, fired, sums = topk_with_stats(x, 12, select=select, relu=relu, impl="statistical")
    kept = torch.zeros(50, 96, dtype=torch.bool)
    for i, row in enumerate(x.double().tolist()):
        if select == "value":
            threshold = statistics.NormalDist(statistics.fmean(row), statistics.pstdev(row)).inv_cdf(1 - 12 / 96)
        else:
            rms = math.sqrt(statistics.fmean(v * v for v in row))
            threshold = statistics.NormalDist(0, rms).inv_cdf(1 - 12 / 96 / 2)
        kept[i] = torch.tensor([(abs(v) if select == "magnitude" else v) >= threshold for v in row])
    expected = torch.where(kept & (x > 0) if relu else kept, x, 0)
    assert torch.equal(y, expected)
    assert torch.equal(fired, (expected != 0).sum(0).int())
    assert sums[2] == (expected != 0).sum()
    assert 9 < kept.sum(1).float().mean() < 15  # about 12


def test_statistical_hides_nothing_and_keeps_something():
    x = torch.randn(4, 8)
    for select in ("value", "magnitude"):
        assert torch.equal(topk(x, 8, select=select, impl="statistical"), x)
        assert torch.equal(topk(x, 100, select=select, impl="statistical"), x)
    for bad in (math.nan, math.inf):
        x[0, 3] = bad
        assert not topk(x, 2, impl="statistical")[0, 3].isfinite()
    # All quantiles lie above the largest of two equal groups.
    assert (topk(torch.tensor([[1.0, -1.0] * 8]), 1, impl="statistical") == 1).sum() == 8


def test_statistical_with_a_bias():
    x, bias = torch.randn(40, 64), torch.zeros(64)
    bias[7] = 100.0
    y = topk_with_stats(x, 8, impl="statistical", bias=bias)[0]
    assert torch.equal(y[:, 7], x[:, 7])
    rest = torch.arange(64) != 7
    assert torch.equal(y[:, rest], topk(x, 8, impl="statistical")[:, rest])


def test_statistical_can_be_made_exact():
    x = torch.randn(100, 64, requires_grad=True)
    for flag in (False, True):
        exact = topk_with_stats(x, 8, impl="statistical", exact=torch.tensor(flag))[0]
        assert torch.equal(exact, topk(x, 8)) == flag
        (gradient,) = torch.autograd.grad(exact.sum(), x)
        assert torch.equal(gradient, (exact != 0).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_go_through_the_reference(dtype):
    x = torch.randn(5, 17, dtype=dtype)
    y = topk(x, 4)
    assert y.dtype == dtype
    assert torch.equal(y, torch.zeros_like(x).scatter(-1, x.topk(4).indices, x.topk(4).values))
    with pytest.raises(ValueError, match="topk.impl=threshold runs on a CPU in float32 or bfloat16"):
        topk(x, 4, impl="threshold")


@pytest.mark.parametrize("impl", IMPLS)
def test_k_of_the_width_or_more_is_the_identity(impl):
    x = torch.randn(3, 8)
    for k in (8, 9, 1000):
        y = topk(x, k, impl=impl)
        assert torch.equal(y, x)
        assert y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 3, 4, 8)])
def test_any_leading_shape(impl, shape):
    x = torch.randn(shape)
    y = topk(x, 3, impl=impl)
    assert y.shape == x.shape
    assert ((y != 0).sum(-1) == 3).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_non_contiguous_input(impl):
    x = torch.randn(7, 5, 3).transpose(0, 2)
    assert not x.is_contiguous()
    assert torch.equal(topk(x, 2, impl=impl), topk(x.contiguous(), 2, impl=impl))


def test_wrong_arguments_are_refused():
    x = torch.randn(2, 4)
    for k in (0, -3, torch.tensor(0)):
        with pytest.raises(ValueError, match="TopK keeps at least 1 entry"):
            topk(x, k)
    for k in (2.0, True, torch.tensor(2.0), torch.tensor([2])):
        with pytest.raises(TypeError, match="k must be an int or a 0-d integer tensor"):
            topk(x, k)
    with pytest.raises(TypeError, match="floating-point"):
        topk(torch.ones(2, 4, dtype=torch.int64), 2)
    with pytest.raises(ValueError, match="select=biggest"):
        topk(x, 2, select="biggest")


@pytest.mark.parametrize("impl", IMPLS)
def test_relu_clips_what_was_kept_and_hides_no_nan(impl):
    x = torch.tensor([[-1.0, math.nan, 2.0, -3.0, 0.0]])
    y = topk(x, 4, relu=True, impl=impl)
    assert torch.equal(torch.nan_to_num(y, nan=9.0), torch.tensor([[0.0, 9.0, 2.0, 0.0, 0.0]]))


@pytest.mark.parametrize("select", ["value", "magnitude"])
@pytest.mark.parametrize("relu", [False, True])
def test_masked_gradient_is_the_derivative(select, relu):
    torch.manual_seed(0)
    x = (
        torch.randperm(30, dtype=torch.float64).view(5, 6) - 14.3
    )  # distinct, so that no finite difference changes the choice
    assert torch.autograd.gradcheck(lambda x: topk(x, 3, select=select, relu=relu), (x.requires_grad_(),))


def test_a_kept_zero_has_a_gradient():
    for impl in IMPLS:
        x = torch.tensor([[-2.0, 0.0, -1.0]], requires_grad=True)
        topk(x, 2, impl=impl).backward(torch.ones(1, 3))
        assert torch.equal(x.grad, torch.tensor([[0.0, 1.0, 1.0]]))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_both_kinds(impl, dtype):
    x = torch.randn(50, 64, dtype=dtype, requires_grad=True)
    g = torch.randn(64, 50, dtype=dtype).t()  # not contiguous, as gradients may be
    (masked,) = torch.autograd.grad(topk(x, 8, impl=impl), x, g)
    kept = topk(x.detach(), 8, impl=impl) != 0
    assert torch.equal(masked, torch.where(kept, g, 0))
    (straight,) = torch.autograd.grad(topk(x, 8, impl=impl, grad="ste"), x, g)
    assert torch.equal(straight, g)
    (straight_relu,) = torch.autograd.grad(topk(x, 8, impl=impl, grad="ste", relu=True), x, g)
    assert torch.equal(straight_relu, torch.where(x > 0, g, 0))


@pytest.mark.parametrize("impl", [*IMPLS, "statistical"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("reach", [None, 1.0, 1.5, 3.0, 100.0])
def test_a_tamed_straight_through_gradient(impl, relu, reach):
    """1 for what is kept, the scale for what ranks up to reach * k, 0 below."""
    x, g = torch.randn(50, 64, requires_grad=True), torch.randn(50, 64)
    options = {"relu": relu, "impl": impl}
    y = topk_with_stats(x, 9, grad="ste", ste_scale=torch.tensor(0.25), ste_reach=reach, **options)[0]
    (gradient,) = torch.autograd.grad(y, x, g)
    kept = topk(x, 9, **options) != 0
    reached = (x > 0) if relu else torch.ones_like(kept)
    if reach is not None:
        reached = topk(x, math.ceil(9 * reach), **options) != 0
    assert torch.equal(gradient, torch.where(kept, g, torch.where(reached, 0.25 * g, 0)))


TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("impl", ["auto", "reference", "statistical"])
@pytest.mark.parametrize("grad", ["masked", "ste"])
def test_of_a_sum(impl, grad):
    """As of the sum made before, in value, type, counts and in the gradients of both addends."""
    options = {"impl": impl, "grad": grad, "ste_scale": torch.tensor(0.5)}
    for (first, second), d in zip(itertools.product(TYPES, TYPES), (1, 3, 64, 100, 257, 64, 96, 7, 8), strict=True):
        x = torch.randn(2, 30, d).to(first).requires_grad_()
        added = torch.randn(d, 30, 2).to(second).requires_grad_()
        sum_of = lambda x, added: x + added.transpose(0, 2)  # noqa: E731 - not contiguous, as an input may be
        k = max(1, d // 4)
        expected = topk_with_stats(sum_of(x, added), k, **options)
        found = topk_with_stats(x, k, added=added.transpose(0, 2), **options)
        assert found[0].dtype == torch.promote_types(first, second)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
        g = torch.randn_like(found[0])
        for one, other in zip(*(torch.autograd.grad(y, (x, added), g) for y in (found[0], expected[0])), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_a_sum_of_other_shapes_is_refused():
    for added in (torch.randn(4), torch.randn(2, 5), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(TypeError, match="added must be floating point of shape"):
            topk_with_stats(torch.randn(2, 4), 2, added=added)


def test_a_bit_per_entry_is_saved():
    x = torch.randn(5, 6, 20, requires_grad=True)
    for impl in IMPLS:
        saved = []

        def note(tensor, saved=saved):
            saved.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            topk_with_stats(x, 4, impl=impl, added=torch.randn(5, 6, 20))
        assert [(tensor.shape, tensor.dtype) for tensor in saved] == [((30, 3), torch.uint8)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("select", "biased"), [("value", False), ("magnitude", True), ("magnitude", False)])
def test_rows_unlike_each_other(dtype, select, biased):
    """The threshold of the row before is a poor guess: sizes apart by many powers of ten, ties, zeros, either sign."""
    torch.manual_seed(0)
    size = torch.tensor([1e-38, 1e30, 1.0, -1e-3, 1e5, 0.0, 1e-20, 3e38])[:, None]
    for d in (30, 300):
        normal, tied, shifted = (
            torch.randn(8, d) * size,
            torch.randint(-3, 3, (8, d)) * size,
            (torch.rand(8, d) - 2) * size,
        )
        x = torch.cat([normal, tied, shifted, normal.flip(0)]).to(dtype)
        bias = torch.randn(d) if biased else None
        for k in (1, d // 3, d - 1):
            fast, slow = (
                topk_with_stats(x, k, impl=impl, select=select, bias=bias)[0] for impl in ("threshold", "reference")
            )
            assert torch.equal(fast, slow)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("select", ["value", "magnitude"])
def test_statistics(impl, select):
    x = torch.randn(40, 96)
    y, fired, sums = topk_with_stats(x, 12, select=select, impl=impl)
    assert torch.equal(fired, (y != 0).sum(0).int())
    energy = (y.square().sum(-1) / x.square().sum(-1)).sum()
    score = x.abs() if select == "magnitude" else x
    threshold = score.topk(12).values[:, -1].sum()
    torch.testing.assert_close(sums, torch.stack([energy, threshold, torch.tensor(40.0 * 12)]))


def test_statistics_of_an_empty_and_a_zero_row():
    for impl in IMPLS:
        _, fired, sums = topk_with_stats(torch.zeros(2, 4), 2, impl=impl)
        assert fired.sum() == 0
        assert torch.equal(sums, torch.zeros(3))
        _, fired, sums = topk_with_stats(torch.zeros(0, 4), 2, impl=impl)
        assert torch.equal(sums, torch.zeros(3))


def test_many_rows_use_several_threads_with_the_same_result():
    x = torch.randn(5000, 200, requires_grad=True)  # well above the size at which rows are split
    for stats, bias in ((False, None), (True, None), (True, torch.randn(200))):
        fast, slow = (topk_with_stats(x, 20, impl=impl, stats=stats, bias=bias) for impl in ("threshold", "reference"))
        assert torch.equal(fast[0], slow[0])
        assert torch.equal(fast[1], slow[1])
        torch.testing.assert_close(fast[2], slow[2])
    g = torch.randn_like(x)
    grads = [torch.autograd.grad(topk(x, 20, impl=impl), x, g)[0] for impl in IMPLS]
    assert torch.equal(*grads)


@pytest.mark.parametrize("impl", [*IMPLS, "statistical"])
def test_the_operator_keeps_torchs_rules(impl):
    x = torch.randn(6, 10, requires_grad=True)
    for grad in ("masked", "ste"):
        given = (x, torch.tensor(3), "value", False, grad, impl, True)
        torch.library.opcheck(torch.ops.topklm.topk.default, given)
        given += (torch.zeros(10), torch.tensor(False), torch.tensor(0.5), 2.0)
        given += (torch.randn(6, 10, dtype=torch.bfloat16, requires_grad=True),)
        torch.library.opcheck(torch.ops.topklm.topk.default, given)


def test_a_moving_k_compiles_once():
    counter = CompileCounter()
    f = torch.compile(lambda x, k: topk(x * 2, k) + 1, backend=counter, fullgraph=True)
    x = torch.randn(4, 32, requires_grad=True)
    for k in range(1, 33):
        torch.testing.assert_close(f(x, torch.tensor(k)), topk(x * 2, k) + 1)
        f(x, torch.tensor(k)).sum().backward()
    assert counter.frame_count == 1


def test_what_moves_in_training_compiles_once():
    counter = CompileCounter()

    def f(x, bias, exact, scale):
        return topk_with_stats(
            x, 4, grad="ste", impl="statistical", bias=bias, exact=exact, ste_scale=scale, ste_reach=2.0
        )[0]

    compiled = torch.compile(f, backend=counter, fullgraph=True)
    x = torch.randn(4, 32, requires_grad=True)
    for step in range(4):
        given = (torch.full((32,), 0.1 * step), torch.tensor(step > 1), torch.tensor(1.0 - 0.2 * step))
        torch.testing.assert_close(compiled(x, *given), f(x, *given))
        gradients = [torch.autograd.grad(g(x, *given).square().sum(), x)[0] for g in (compiled, f)]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


def test_under_autocast_the_type_is_the_inputs():
    x = torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert topk(x, 2).dtype == torch.float32
        assert topk(x.bfloat16(), 2).dtype == torch.bfloat16


def test_without_a_compiler_the_reference_serves_and_says_so(monkeypatch):
    def broken():
        raise topk_threshold.NoCompiler("no C compiler found")

    implementations._compiled_search_works.cache_clear()
    monkeypatch.setattr(topk_threshold, "library", broken)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert resolve_impl("auto", torch.device("cpu"), torch.float32) == "reference"
    assert "no C compiler found" in str(caught[0].message)
    implementations._compiled_search_works.cache_clear()
