"""What a training step costs as the model grows: width, depth, length and k, one at a time around the configured model,
TopK beside its dense twin."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..model import ModelConfig, count_flops
from ..training.config import RunConfig
from ..training.hardware import peak_flops
from .contenders import Bench
from .timing import Plot, Result, Row, Timing, interleave

MOST_ROUNDS = 10  # of so many models: the default takes minutes
FACTORS = {"width": (0.5, 2.0), "depth": (0.5, 2.0), "length": (0.5, 2.0, 4.0), "k": (0.25, 0.5, 2.0, 4.0)}


def scaling_benchmark(config: RunConfig, rounds: int) -> Result:
    """Times a step at every point, all points in turn.

    Returns:
        Two rows per point, TopK without telemetry and the dense twin: what is varied and its value, ms and tokens/s of
        a step, TFLOP/s (dense-equivalent), speed over the dense twin, and MFU where the device's peak is known. The
        configured model is the point that all four share.
    """
    rounds = min(rounds, MOST_ROUNDS)
    base = Bench.of(config)
    points = dict(_points(base.model, config.training.batch_tokens // config.trainer.ranks))
    benches = {name: dataclasses.replace(base, model=model) for name, model in points.items()}
    contenders = {}
    for name, bench in benches.items():
        if bench.model.topk.sites:
            contenders[f"topk {name}"] = bench.ours()
        if not name.startswith("k "):  # where the dense twin is that of the configured model
            contenders[f"dense {name}"] = bench.ours(topk=False)
    timings = interleave(contenders, rounds)
    rows = [
        row
        for vary in FACTORS
        for name, bench in sorted(benches.items(), key=lambda item: _value(vary, item[1].model))
        if name in ("configured", f"{vary} {_value(vary, bench.model)}")
        for row in _rows(vary, name, bench, timings)
    ]
    title = f"scaling: around {config.plain['model']['name']}, batch of {config.training.batch_tokens} tokens"
    return Result(
        title,
        rows,
        [f"{rounds} rounds; the width of a head, k as a share of the width and tokens per step stay the same"],
        Plot(y="tokens/s", x="value", series="model", panels=("vary",), log=True),
    )


def _value(vary: str, model: ModelConfig) -> int:
    if vary == "k":
        return model.topk.final_k(0, model.site_width(model.topk.sites[0])) if model.topk.sites else 0
    return {"width": model.d_model, "depth": model.n_layers, "length": model.seq_len}[vary]


def _points(model: ModelConfig, batch_tokens: int) -> Iterator[tuple[str, ModelConfig]]:
    """The configured model, and those around it that are possible, by name: ``width 256``."""
    yield "configured", model
    for vary, factors in FACTORS.items():
        for factor in factors if vary != "k" or model.topk.sites else ():
            value = round(_value(vary, model) * factor)
            if vary == "length" and batch_tokens % max(1, value):
                continue
            try:
                yield f"{vary} {value}", dataclasses.replace(model, **_changes(model, vary, factor, value))
            except ValueError:  # half of one head, k beyond the width: no such model
                continue


def _changes(model: ModelConfig, vary: str, factor: float, value: int) -> dict[str, Any]:
    """What is other in the model whose width, depth, length or k is ``value``."""
    if vary == "length":
        return {"seq_len": value}
    topk = model.topk
    if topk.sites:  # k follows the width, and one k goes for any number of blocks
        k = value if vary == "k" else None
        ratio = None if k else _value("k", model) / model.site_width(topk.sites[0])
        topk = dataclasses.replace(topk, k=k, k_ratio=ratio)
    if vary == "k":
        return {"topk": topk}
    if vary == "depth":
        return {"n_layers": value, "topk": topk}
    assert model.d_ff is not None
    assert model.n_kv_heads is not None
    heads, kv_heads = model.n_heads * factor, model.n_kv_heads * factor
    if heads % 1 or kv_heads % 1:
        raise ValueError("the heads would be of another width")
    sizes = {"d_model": value, "d_ff": round(model.d_ff * factor), "n_heads": int(heads), "n_kv_heads": int(kv_heads)}
    return {**sizes, "topk": topk}


def _rows(vary: str, name: str, bench: Bench, timings: dict[str, Timing]) -> Iterator[Row]:
    dense = timings.get(f"dense {name}", timings["dense configured"])
    flops = count_flops(bench.model).training
    peak = peak_flops(bench.device, bench.precision)
    tokens = bench.config.training.batch_tokens / bench.config.trainer.ranks
    for model, timing in (("TopK", timings.get(f"topk {name}")), ("dense twin", dense)):
        if timing is None:
            continue
        rate = tokens / timing.median
        made: Row = {
            "vary": vary,
            "value": _value(vary, bench.model),
            "model": model,
            "ms per step": 1000 * timing.median,
            "tokens/s": rate,
            "TFLOP/s": rate * flops / 1e12,
            "vs dense twin": timing.speed_over(dense),
        }
        if peak is not None:
            made["MFU"] = rate * flops / peak
        yield made
