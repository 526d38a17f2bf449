"""The speed of generation for one text, dense and by the columns of weights that meet the non-zeros of TopK states.

First single products: a vector with k non-zeros by matrices shaped as a query, key and value projection, so many of
them in turn, each with another vector, that they come from memory and not from a cache, as those of a model too large
for it. Then whole models with random weights: the configured one, and ``BLOCKS`` blocks of several widths, for several
k and two choices of sites. Tokens are drawn after a prompt of one, another in each round.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import DecodeWeights, ModelConfig, TopKConfig, TopKTransformer, generate
from ..model.column_product import by_columns, column_product
from ..model.config import SITES
from ..model.decode_weights import break_even
from ..training.config import RunConfig
from ..training.hardware import resolve_device, resolve_precision
from .timing import Plot, Result, interleave

VOCAB_SIZE = 4096  # for timing alone: no tokenizer is needed
WIDTHS = (256, 512, 1024, 2048)
BLOCKS = 4
SHARES = (8, 16, 32)  # one neuron in so many is kept
PRODUCT_WIDTHS = (*WIDTHS, 4096)
PRODUCT_SHARES = (1, 2, 4, 16, 64)
PRODUCT_BYTES = 64 << 20  # of all matrices of a shape: more than a CPU's cache holds
NEW_TOKENS = 8
PLOT = Plot(y="speed-up", x="d", series="k/d", panels=("what", "sites", "precision"), log=True)
VARIETY = 61  # vectors, and prompts: a prime, so that each meets every matrix


def decode_benchmark(config: RunConfig, rounds: int) -> Result:
    """Times products in float32 and bfloat16 with ``rounds`` rounds, and generation in the run's precision with a third
    of them.

    Returns:
        One row per product or model and k: how many a second dense and by columns, the speed-up, and what
        ``sparse=auto`` takes; and how often that was the slower one.
    """
    device = torch.device(resolve_device(config.trainer.accelerator))
    precision = resolve_precision(config.trainer.precision, device.type)
    rows = [
        row
        for dtype in (torch.float32, torch.bfloat16)
        for width in PRODUCT_WIDTHS
        for row in _products(width, dtype, device, rounds)
    ]
    configured = config.model_config(config.tokenizer.vocab_size or VOCAB_SIZE)
    models = [configured] if configured.topk.sites else []
    models += [_model(width, sites) for width in WIDTHS for sites in (("resid_post_mlp",), SITES)]
    for model in models:
        shares = SHARES if model is not configured else (None,)
        rows += _generation(model, shares, config.seed, precision, device, max(1, rounds // 3))
    slower = [row for row in rows if row["k/d"] != "1/1" and (row["auto"] == "columns") != (row["speed-up"] > 1)]
    lost = max((max(row["speed-up"], 1 / row["speed-up"]) - 1 for row in slower), default=0.0)
    findings = [
        f"below k = d, auto takes the slower of the two in {len(slower)} of {len(rows)} rows, at worst by {lost:.0%}",
        f"generation is in {precision}, with weights cast once for dense and by columns alike",
    ]
    return Result(
        f"decode: one text at a time on {device.type}, {torch.get_num_threads()} threads", rows, findings, PLOT
    )


def _row(
    what: str, width: int, sites: str, share: str, precision: str, timings: Any, count: int, auto: bool
) -> dict[str, Any]:
    dense, columns = timings["dense"], timings["columns"]
    return {
        "what": what,
        "d": width,
        "sites": sites,
        "k/d": share,
        "precision": precision,
        "dense per s": count / dense.median,
        "columns per s": count / columns.median,
        "speed-up": columns.speed_over(dense),
        "auto": "columns" if auto else "dense",
    }


@torch.inference_mode()
def _products(width: int, dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    outputs = 3 * width
    generator = torch.Generator().manual_seed(width)
    weight_oi = (torch.randn(outputs, width, generator=generator) / width**0.5).to(device, dtype)
    count = max(1, PRODUCT_BYTES // weight_oi.nbytes)
    dense = [weight_oi.clone() for _ in range(count)]
    columns = [by_columns(weight_oi, dtype) for _ in range(count)]
    rows = []
    for share in PRODUCT_SHARES:
        k = width // share
        order_vi = torch.rand(VARIETY, width, generator=generator).argsort(-1)
        x_vi = torch.randn(VARIETY, width, generator=generator).where(order_vi < k, 0.0).to(device, dtype)
        contenders: dict[str, Callable[[], None]] = {
            "dense": functools.partial(_each, F.linear, itertools.cycle(x_vi.split(1)), dense),
            "columns": functools.partial(_each, column_product, itertools.cycle(x_vi.split(1)), columns),
        }
        auto = k <= break_even(width, outputs, dtype, device)
        timings = interleave(contenders, rounds)
        rows.append(
            _row("product, 3d x d", width, "", f"1/{share}", str(dtype).removeprefix("torch."), timings, count, auto)
        )
    return rows


def _each(product: Callable[[Tensor, Tensor], Tensor], vectors: Iterator[Tensor], matrices: list[Tensor]) -> None:
    for matrix in matrices:
        product(next(vectors), matrix)


def _generate(model: TopKTransformer, prompts: Iterator[Tensor], new_tokens: int, weights: DecodeWeights) -> None:
    prompt_bt = next(prompts)
    generate(model, prompt_bt, new_tokens, temperature=1.0, top_p=1.0, seed=int(prompt_bt), sparse=weights)


def _model(width: int, sites: tuple[str, ...]) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        d_model=width,
        n_layers=BLOCKS,
        n_heads=width // 64,
        tied=True,
        topk=TopKConfig(sites=sites),
    )


def _generation(
    model_config: ModelConfig,
    shares: tuple[int | None, ...],
    seed: int,
    precision: str,
    device: torch.device,
    rounds: int,
) -> list[dict[str, Any]]:
    """A row per share of neurons kept; None: the k of the config."""
    torch.manual_seed(seed)
    model = TopKTransformer(model_config).to(device).eval()
    prompts = torch.randint(model_config.vocab_size, (VARIETY, 1)).to(device).split(1)
    new = min(NEW_TOKENS, model_config.seq_len - 1)
    either = {"dense": DecodeWeights(model, False), "columns": DecodeWeights(model, True)}
    auto = DecodeWeights(model)
    sites = "all three" if len(model_config.topk.sites) == len(SITES) else ", ".join(model_config.topk.sites)
    what, width = f"generation, {model_config.n_layers} blocks", model_config.d_model
    rows = []
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        for share in shares:
            if share is not None:
                model.set_k([site.width // share for site in model.sites])
            contenders: dict[str, Callable[[], None]] = {
                name: functools.partial(_generate, model, itertools.cycle(prompts), new, weights)
                for name, weights in either.items()
            }
            timings = interleave(contenders, rounds)
            with auto.in_use(batch=1):
                chosen = any(choice.by_columns for choice in auto.choices)
            kept = f"1/{model.sites[0].width / int(model.sites[0].k):g}"
            rows.append(_row(what, width, sites, kept, precision, timings, new, chosen))
    return rows
