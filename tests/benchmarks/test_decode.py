"""The benchmark of decoding, at sizes that take no time: every product and model has its row, and auto is told."""

import pytest

from tests.composing import checked
from topklm.benchmarks import decode
from topklm.model import decode_weights


@pytest.fixture
def measured(monkeypatch):
    """measured(*overrides): the result for the smoke model and models of width 64."""
    for name, value in {"WIDTHS": (64,), "PRODUCT_WIDTHS": (64,), "BLOCKS": 2, "PRODUCT_BYTES": 1 << 16}.items():
        monkeypatch.setattr(decode, name, value)

    def run(*overrides):
        return decode.decode_benchmark(checked("debug=smoke", "trainer=cpu", *overrides), rounds=2)

    return run


def test_a_row_for_each(measured, monkeypatch):
    monkeypatch.setattr(decode_weights, "SMALLEST_MATRIX", 64 * 192)
    result = measured("trainer.precision=32", "topk.k=8")
    found = [tuple(row[name] for name in ("what", "d", "sites", "k/d", "precision", "auto")) for row in result.rows]
    products = [
        ("product, 3d x d", 64, "", share, precision, "dense" if share == "1/1" else "columns")
        for precision in ("float32", "bfloat16")
        for share in ("1/1", "1/2", "1/4", "1/16", "1/64")
    ]
    models = [("generation, 2 blocks", 32, "resid_post_mlp", "1/4", "32-true", "dense")]  # its matrices are too small
    models += [
        ("generation, 2 blocks", 64, sites, share, "32-true", "columns")
        for sites in ("resid_post_mlp", "all three")
        for share in ("1/8", "1/16", "1/32")
    ]
    assert found == products + models
    assert all(row["dense per s"] > 0 and row["columns per s"] > 0 and row["speed-up"] > 0 for row in result.rows)


def test_a_model_without_sites_has_nothing_to_compare(measured, monkeypatch):
    monkeypatch.setattr(decode, "WIDTHS", ())
    result = measured("topk=none")
    assert {row["what"] for row in result.rows} == {"product, 3d x d"}
