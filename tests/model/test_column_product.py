"""The product by columns: beside PyTorch's dense product, whatever is zero and whoever multiplies."""

import pytest
import torch

from topklm.model import column_product as module
from topklm.model.column_product import by_columns, column_product, implementation

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}


def sparse_rows(n: int, width: int, nonzeros: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(width + nonzeros)
    x_ni = torch.zeros(n, width)
    for row in x_ni:
        row[torch.randperm(width, generator=generator)[:nonzeros]] = torch.randn(nonzeros, generator=generator)
    return x_ni.to(dtype)


def matrix(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs)) / inputs**0.5


@pytest.fixture(params=["compiled", "gathered"])
def product(request, monkeypatch):
    """column_product by either implementation."""
    if request.param == "gathered":
        monkeypatch.setattr(module, "_library", lambda: None)
    assert implementation(CPU, torch.float32) == request.param
    return column_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "nonzeros"),
    [(1, 64, 32, 0), (1, 64, 1, 1), (1, 40, 33, 7), (3, 96, 130, 24), (2, 300, 1025, 9), (1, 128, 5000, 128)],
)
def test_is_the_dense_product(product, dtype, threads, n, inputs, outputs, nonzeros, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(module, "PRODUCTS_PER_THREAD", 16)
    x_ni, weight_oi = sparse_rows(n, inputs, nonzeros, dtype), matrix(outputs, inputs).to(dtype)
    expected_no = x_ni.double() @ weight_oi.double().T
    y_no = product(x_ni, by_columns(weight_oi, dtype))
    assert y_no.dtype == dtype
    torch.testing.assert_close(y_no.double(), expected_no, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] / 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_no_bit(dtype, monkeypatch):
    x_ni, columns_io = sparse_rows(2, 200, 61, dtype), by_columns(matrix(3000, 200), dtype)
    monkeypatch.setattr(module, "PRODUCTS_PER_THREAD", 16)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(column_product(x_ni, columns_io))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_not_finite_shows(product):
    weight_oi = matrix(5, 8)
    for value in (float("nan"), float("inf")):
        x_ni = torch.zeros(1, 8)
        x_ni[0, 3] = value
        y_no = product(x_ni, by_columns(weight_oi, torch.float32))
        assert torch.equal(y_no.isnan(), (value * weight_oi[:, 3]).isnan()[None])
        assert not y_no.isfinite().any()


def test_a_zero_hides_its_column(product):
    """Only columns that meet a non-zero are read: what is in the others cannot matter, be it nan."""
    columns_io = by_columns(matrix(20, 16), torch.float32)
    x_ni = sparse_rows(1, 16, 5, torch.float32)
    clean_no = product(x_ni, columns_io)
    columns_io[x_ni[0] == 0] = float("nan")
    assert torch.equal(product(x_ni, columns_io), clean_no)


def test_bfloat16_rounds_to_the_nearest(product):
    """1 + 2^-8 lies half-way between two bfloat16 and goes to the even one; float32 sums keep small terms."""
    weight_oi = torch.tensor([[1.0, 2**-8, 0.0], [1.0, 2**-8, 2**-12], [1.0, 3 * 2**-8, 0.0]]).to(torch.bfloat16)
    y_no = product(torch.ones(1, 3, dtype=torch.bfloat16), by_columns(weight_oi, torch.bfloat16))
    assert y_no[0].tolist() == [1.0, 1 + 2**-7, 1 + 2**-6]


def test_what_does_not_fit_is_refused():
    with pytest.raises(TypeError, match="one type"):
        column_product(torch.zeros(1, 4), torch.zeros(4, 4, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"columns \(4, 5\) must be contiguous and fit vectors \(1, 5\)"):
        column_product(torch.zeros(1, 5), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="must be contiguous"):
        column_product(torch.zeros(1, 4), torch.zeros(5, 4).t())


def test_what_runs_where(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(module, "has_triton", lambda: False)
    assert implementation(gpu, torch.bfloat16) == "gathered"
    monkeypatch.setattr(module, "has_triton", lambda: True)
    assert implementation(gpu, torch.bfloat16) == "triton"
    assert implementation(gpu, torch.float64) == implementation(CPU, torch.float64) == "gathered"
    assert implementation(CPU, torch.bfloat16) == "compiled"
