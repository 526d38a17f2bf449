"""Activation checkpointing of a block: in the backward pass it computes again what it did not keep.

Sources: Chen et al. 2016 (arXiv 1604.06174); ``torch.utils.checkpoint`` without reentrance. What is computed again is
the same to the bit, TopK's choice included, and TopK sites do not count it again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .site import TopKSite

aten: Any = torch.ops.aten
# What selective checkpointing keeps: results of matrix products and of attention, which cost most to compute. Scores of
# attention written out (baddbmm) are left out, as there are more of them than of anything else.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    *(
        getattr(aten, name).default
        for name in (
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
        )
    ),
}


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


_selective = functools.partial(create_selective_checkpoint_contexts, _policy)


def checkpointed(
    compute: Callable[..., Tensor], how: str, sites: Sequence[TopKSite | None], x: Tensor, *others: Any
) -> Tensor:
    """``compute(x, *others)``, of which the backward pass finds little kept.

    Args:
        how: ``selective`` keeps the results of matrix products and attention; ``block`` and ``block_sparse`` nothing
            but ``x``. sites: those that ``compute`` passes through.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # no dropout, no random numbers
    if torch.compiler.is_compiling():  # the compiler sorts out what is computed again, and counts no twice
        if how == "selective":
            options["context_fn"] = _selective
    else:
        options["context_fn"] = functools.partial(_contexts, how, sites)
    return checkpoint(compute, x, *others, **options)


def _contexts(how: str, sites: Sequence[TopKSite | None]) -> tuple[Any, Any]:
    """Where the forward pass runs, and where it runs again."""
    forward, again = _selective() if how == "selective" else (nullcontext(), nullcontext())
    return forward, _Uncounted(again, sites)


class _Uncounted:
    """``context``, in which sites do not count. It can be entered again: a graph that is kept is gone through again."""

    def __init__(self, context: Any, sites: Sequence[TopKSite | None]) -> None:
        self.context, self.sites = context, [site for site in sites if site is not None]
        self.before: list[bool] = []

    def __enter__(self) -> None:
        self.context.__enter__()
        self.before = [site.record for site in self.sites]
        for site in self.sites:
            site.record = False

    def __exit__(self, *error: Any) -> None:
        for site, record in zip(self.sites, self.before, strict=True):
            site.record = record
        self.context.__exit__(*error)
