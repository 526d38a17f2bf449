"""Looking at what TopK sites put out while the model computes. Shapes: b batch, t position, d a site's width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .transformer import TopKTransformer


@contextmanager
def capture(model: TopKTransformer) -> Iterator[dict[str, Tensor]]:
    """Inside a ``with`` block, each forward pass leaves the output of every site, (b, t, d), in the dict under its
    label, in the order of ``model.sites``; the dict stays empty for a dense twin.

    Compiled blocks run uncompiled inside the block: torch.compile does not look for hooks that come after it, and what
    it has compiled is kept for afterwards.
    """
    seen: dict[str, Tensor] = {}

    def note(site: nn.Module, inputs: object, y_btd: Tensor) -> None:
        seen[str(site.label)] = y_btd

    hooks = [site.register_forward_hook(note) for site in model.sites]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
