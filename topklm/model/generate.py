"""Sampling continuations of a prompt, with a key/value cache.

Shapes: b batch, t position, v vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import KVCache
from .transformer import TopKTransformer


@torch.compiler.set_stance("force_eager")  # lengths change at every token: compiled blocks would be compiled anew
@torch.inference_mode()
def generate(
    model: TopKTransformer,
    prompt_bt: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> Tensor:
    """Continues every row of ``prompt_bt``.

    Args:
        prompt_bt: (b, t) token ids, t at least 1.
        max_new_tokens: how many to add; fewer where ``seq_len`` is reached.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the smallest set of tokens that holds this much probability (Holtzman et al. 2020, arXiv
            1904.09751).
        seed: of a generator of its own, so that sampling never disturbs training.

    Returns:
        (b, t + new) ids, prompt included.
    """
    config = model.config
    was_training = model.training
    model.eval()
    generator = torch.Generator(device=prompt_bt.device).manual_seed(seed)
    parameter = next(model.parameters())
    dtype = (
        torch.get_autocast_dtype(parameter.device.type)
        if torch.is_autocast_enabled(parameter.device.type)
        else parameter.dtype
    )
    caches = [KVCache(config, prompt_bt.shape[0], parameter.device, dtype) for _ in range(config.n_layers)]
    ids_bt = new_bt = prompt_bt
    for _ in range(min(max_new_tokens, config.seq_len - prompt_bt.shape[1])):
        logits_bv = model(new_bt, caches)[:, -1].float()
        new_bt = _sample(logits_bv, temperature, top_p, generator)
        ids_bt = torch.cat((ids_bt, new_bt), dim=1)
    model.train(was_training)
    return ids_bt


def _sample(logits_bv: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_bv.argmax(-1, keepdim=True)
    p_bv, order_bv = (logits_bv / temperature).softmax(-1).sort(-1, descending=True)
    outside = p_bv.cumsum(-1) - p_bv >= top_p  # the likeliest token is always inside
    p_bv = p_bv.masked_fill(outside, 0.0)
    return order_bv.gather(-1, torch.multinomial(p_bv, 1, generator=generator))
