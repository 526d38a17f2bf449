"""The GPU kernels of the product by columns beside PyTorch's dense product, run on a CPU by triton's interpreter.

``test_column_product_triton.py`` starts this in a process of its own, since triton must be told before it is imported.
"""

import pytest
import torch

from topklm.model import column_product_triton as kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "inputs", "outputs", "nonzeros"),
    [(1, 64, 32, 0), (1, 40, 33, 7), (2, 70, 130, 24), (1, 48, 20, 48)],
)
def test_is_the_dense_product(dtype, n, inputs, outputs, nonzeros, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 32)
    monkeypatch.setattr(kernels, "OUTPUTS", 32)
    generator = torch.Generator().manual_seed(inputs)
    order_ni = torch.rand(n, inputs, generator=generator).argsort(-1)
    x_ni = torch.randint(1, 30, (n, inputs), generator=generator) / 8 * (order_ni < nonzeros)
    columns_io = torch.randint(-30, 30, (inputs, outputs), generator=generator) / 8
    expected_no = x_ni @ columns_io  # of eighths: exact in float32, and so are the kernels' sums, in any order
    y_no = kernels.column_product(x_ni.to(dtype), columns_io.to(dtype))
    assert y_no.dtype == dtype
    # The interpreter rounds to bfloat16 in a way of its own.
    torch.testing.assert_close(y_no.float(), expected_no, rtol=0 if dtype == torch.float32 else 2**-7, atol=0)


def test_a_zero_hides_its_column_and_nan_shows():
    x_ni, columns_io = torch.zeros(1, 40), torch.full((40, 20), float("nan"))
    x_ni[0, 7], columns_io[7] = 2.0, 3.0
    assert torch.equal(kernels.column_product(x_ni, columns_io), torch.full((1, 20), 6.0))
    x_ni[0, 9] = float("nan")
    assert kernels.column_product(x_ni, columns_io).isnan().all()


def test_no_vector():
    assert kernels.column_product(torch.zeros(0, 8), torch.zeros(8, 5)).shape == (0, 5)
