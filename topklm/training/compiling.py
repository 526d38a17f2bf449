"""torch.compile of a model's blocks, each a whole graph."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..model import TopKTransformer

# Dynamo keeps so many versions of a function before it gives up, 8 by default. All blocks are one function: TopK blocks
# and dense ones, in training and in validation, on full batches and on the last one, come to about that many.
RECOMPILE_LIMIT = 32


def compile_blocks(model: TopKTransformer, backend: str | Callable = "inductor") -> None:
    """Has every block compiled when it is first called, in place: parameters keep their names, and equal blocks share
    one compilation. What cannot be compiled as one graph is an error and not a slower run.

    Moving k, the sites' counters and activation checkpointing are part of the graph. Generation, whose lengths change
    at every token, and ``capture`` run uncompiled.
    """
    # Under selective checkpointing torch warns of in-place operations. Ours add to the counters, once, as tests show.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
    for block in model.blocks:
        block.compile(fullgraph=True, backend=backend)
