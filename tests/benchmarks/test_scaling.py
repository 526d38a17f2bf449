"""Which models stand around the configured one, and what the table says of them."""

import pytest

from topklm.benchmarks import scaling
from topklm.benchmarks.contenders import Bench
from topklm.benchmarks.timing import Timing
from topklm.model import ModelConfig, TopKConfig


def shapes(model, batch_tokens):
    return dict(scaling._points(model, batch_tokens))


def test_points():
    model = ModelConfig(
        vocab_size=97, d_model=64, n_heads=2, n_layers=4, seq_len=32, topk=TopKConfig(k=[16, 8, 8], select="magnitude")
    )
    found = shapes(model, 128)
    assert list(found) == (
        "configured, width 32, width 128, depth 2, depth 8, length 16, length 64, length 128, k 4, k 8, k 32, k 64"
    ).split(", ")
    assert found["configured"] is model
    wide = found["width 128"]
    assert (wide.n_heads, wide.head_dim, wide.d_ff) == (4, 32, 2 * model.d_ff)
    assert wide.topk.final_k(2, 128) == 32
    assert found["depth 8"].topk.final_k(6, 64) == 16
    assert found["k 4"].topk.final_k(0, 64) == 4
    assert {m.topk.select for m in found.values()} == {"magnitude"}


def test_what_cannot_be_is_left_out():
    one_head = ModelConfig(vocab_size=97, d_model=32, n_heads=1, n_layers=2, seq_len=32, topk=TopKConfig(k=16))
    found = shapes(one_head, 64)
    assert list(found) == "configured, width 64, depth 4, length 16, length 64, k 4, k 8, k 32".split(", ")
    three = ModelConfig(vocab_size=97, d_model=96, n_heads=3, n_layers=2, seq_len=32, topk=TopKConfig(k=16))
    assert [name for name in shapes(three, 64) if "width" in name] == ["width 192"]  # half would be other heads
    dense = ModelConfig(vocab_size=97, d_model=32, n_heads=2, n_layers=2, seq_len=32, topk=TopKConfig(sites=()))
    assert not any(name.startswith("k ") for name in shapes(dense, 64))


@pytest.mark.parametrize("sparse", [True, False])
def test_the_table(config, monkeypatch, sparse):
    monkeypatch.setattr(Bench, "ours", lambda self, topk=True: (self.model, topk))
    seen = {}

    def interleave(contenders, rounds):
        seen.update(contenders, rounds=rounds)
        # A step takes a second, with TopK two.
        return {name: Timing(name, [2.0 if topk else 1.0] * 3) for name, (_, topk) in contenders.items()}

    monkeypatch.setattr(scaling, "interleave", interleave)
    monkeypatch.setattr(scaling, "peak_flops", lambda device, precision: 1e9)
    result = scaling.scaling_benchmark(config("topk.k=4" if sparse else "topk=none"), rounds=30)
    assert seen["rounds"] == 10
    points = {(row["vary"], row["value"]) for row in result.rows}
    assert {("width", 16), ("width", 32), ("depth", 2), ("depth", 4), ("length", 32), ("length", 64)} <= points
    assert (("k", 4) in points) == sparse
    for row in result.rows:
        topk = row["model"] == "TopK"
        assert row["tokens/s"] == (32 if topk else 64)
        assert row["vs dense twin"] == (0.5 if topk else 1.0)
        assert row["MFU"] == pytest.approx(1e3 * row["TFLOP/s"])
    assert {row["model"] for row in result.rows} == {"dense twin"} | ({"TopK"} if sparse else set())
    widths = [row["value"] for row in result.rows if row["vary"] == "width"]
    assert widths == sorted(widths)
