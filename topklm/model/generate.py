"""Sampling continuations of a prompt, with a key/value cache.

Shapes: b batch, t position, v vocabulary, c the likeliest of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import KVCache
from .decode_weights import DecodeWeights
from .transformer import TopKTransformer

CANDIDATES = 512  # sorting a vocabulary takes longer than a small model's forward pass, and top_p rarely needs more


@torch.inference_mode()
def generate(
    model: TopKTransformer,
    prompt_bt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    sparse: bool | str | DecodeWeights = "auto",
) -> Tensor:
    """Continues every row of ``prompt_bt``.

    Args:
        prompt_bt: (b, t) token ids, t at least 1.
        max_new_tokens: how many to add; fewer where ``seq_len`` is reached.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the smallest set of tokens that holds this much probability (Holtzman et al. 2020, arXiv
            1904.09751).
        seed: of a generator of its own, so that sampling never disturbs training.
        sparse: whether new tokens are computed from the columns of weights that meet the non-zeros of TopK states:
            where it pays (``auto``), wherever possible, or never. The result is the same to rounding. For many calls
            give a ``DecodeWeights`` of the model: it keeps the copies that this needs.

    Returns:
        (b, t + new) ids, prompt included.

    Raises:
        ValueError: ``sparse`` is something else, or made of another model. RuntimeError: logits are not finite, so that
            nothing can be sampled.
    """
    config = model.config
    b, length = prompt_bt.shape
    stop = max(length, min(length + max_new_tokens, config.seq_len))
    weights = sparse if isinstance(sparse, DecodeWeights) else DecodeWeights(model, sparse, tokens=stop - length)
    if weights.model is not model:
        raise ValueError("sparse= holds the weights of another model: make DecodeWeights of the model that generates.")
    generator = torch.Generator(device=prompt_bt.device).manual_seed(seed)
    ids_bt = torch.cat((prompt_bt, prompt_bt.new_empty(b, stop - length)), dim=1)
    was_training = model.training
    model.eval()
    try:
        # Every length would be compiled anew: one token at a time runs as it stands.
        with torch.compiler.set_stance("force_eager"), weights.in_use(b) as dtype:
            # A CPU attends from one position several times faster in float32: it has no such product in bfloat16.
            kept = torch.float32 if dtype == torch.bfloat16 and prompt_bt.device.type == "cpu" else dtype
            caches = [KVCache(config, b, prompt_bt.device, kept, stop) for _ in range(config.n_layers)]
            seen = 0
            for position in range(length, stop):
                hidden_btd = model.hidden(ids_bt[:, seen:position], caches)
                logits_bv = model.logits(hidden_btd[:, -1:])[:, 0].float()
                ids_bt[:, position : position + 1] = _sample(logits_bv, temperature, top_p, generator)
                seen = position
    finally:
        model.train(was_training)
    return ids_bt


def _sample(logits_bv: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """(b, 1). Equal probabilities rank by lowest index."""
    if temperature == 0:
        return logits_bv.argmax(-1, keepdim=True)
    p_bv = (logits_bv / temperature).softmax(-1)
    if not bool(p_bv.isfinite().all()):
        raise RuntimeError("the model's logits are not finite: nothing can be sampled.")
    # The largest p / noise wins, with exponential noise: a draw in proportion to p, and what torch.multinomial does.
    noise_bv = torch.empty_like(p_bv).exponential_(generator=generator)
    p_bc, ids_bc = _nucleus(p_bv, top_p)
    winner_b1 = (p_bc / noise_bv[:, : p_bc.shape[1]]).argmax(-1, keepdim=True)
    return ids_bc.gather(-1, winner_b1)


def _nucleus(p_bv: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order, zero outside of the smallest set that holds ``top_p``, and whose they are."""
    candidates = p_bv.device.type == "cpu" and p_bv.shape[-1] > CANDIDATES  # on a GPU asking would take longer
    if candidates:
        ids_bc = p_bv.topk(CANDIDATES, sorted=False).indices.sort(-1).values
        p_bc, order_bc = p_bv.gather(-1, ids_bc).sort(dim=-1, descending=True, stable=True)
        # Those that tie with the last are not all here, so the set must be full before them.
        full = (p_bc * (p_bc > p_bc[:, -1:])).sum(-1) >= top_p
        ids_bc = ids_bc.gather(-1, order_bc)
    if not candidates or not bool(full.all()):
        p_bc, ids_bc = p_bv.sort(dim=-1, descending=True, stable=True)
    # CUDA's cumsum of floats is not deterministic, and fails where a run asks for what is.
    sums_bc = p_bc.cpu().cumsum(-1).to(p_bc.device) if torch.are_deterministic_algorithms_enabled() else p_bc.cumsum(-1)
    outside = sums_bc - p_bc >= top_p  # the likeliest token is always inside
    return p_bc.masked_fill(outside, 0.0), ids_bc
