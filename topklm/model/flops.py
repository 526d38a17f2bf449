"""Counting parameters and floating-point operations, once, for every part of the product that speaks of cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .transformer import TopKTransformer


def count_parameters(model: TopKTransformer) -> int:
    """All trainable parameters; a tied matrix counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: TopKTransformer) -> float:
    """Training FLOPs per token: ``6 N + 12 n_layers d_model seq_len`` (PaLM, arXiv 2204.02311, appendix B).

    N counts the entries of matrices, the head included and the embedding look-up not. Causality and sparsity are not
    discounted.
    """
    config = model.config
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 and name != "embed.weight")
    if config.tied:
        matrices += model.head.weight.numel()
    return 6.0 * matrices + 12.0 * config.n_layers * config.d_model * config.seq_len
