"""The TopK transformer: token ids in, next-token logits out.

Shapes: b batch, t position, d model width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from .attention import KVCache
from .block import Block
from .boundary import saved_packed
from .config import CHECKPOINTING, ModelConfig
from .init import initialise
from .layers import Positions, RMSNorm, Rotary
from .loss import Losses, linear_losses, token_cross_entropy
from .site import TopKSite


class TopKTransformer(nn.Module):
    """A decoder-only language model whose residual stream is sparse after chosen blocks.

    Windows of packed documents come with ``documents_bt``, (b, t) integers that do not decrease along t: the document
    each token belongs to, as ``document_numbers`` counts them. Then tokens attend within their document, and positions
    count from its first token in the window. Without, a window is one document.

    Attributes:
        config: what it was built from.
        sites: its TopK sites in the order data meets them; empty for the dense twin.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.head_dim, config.seq_len, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm_out = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        initialise(self)

    @property
    def sites(self) -> list[TopKSite]:
        return [module for module in self.modules() if isinstance(module, TopKSite)]

    def hidden(self, ids_bt: Tensor, caches: list[KVCache] | None = None, documents_bt: Tensor | None = None) -> Tensor:
        """Final hidden states after the last norm, (b, t, d).

        Raises ValueError for more than ``seq_len`` positions, for documents of another shape than ``ids_bt``, and for
        documents together with caches.
        """
        positions = self._positions(ids_bt, caches, documents_bt)
        x_btd = self.embed(ids_bt)
        most_kept = None  # per token of x_btd
        for layer, block in enumerate(cast("list[Block]", list(self.blocks))):
            with saved_packed(x_btd, most_kept if block.checkpointing == "block_sparse" else None):
                x_btd = block(x_btd, positions, caches[layer] if caches else None)
            most_kept = block.most_kept
        return self.norm_out(x_btd)

    def _positions(self, ids_bt: Tensor, caches: list[KVCache] | None, documents_bt: Tensor | None) -> Positions:
        start = caches[0].length if caches else 0
        stop = start + ids_bt.shape[1]
        if stop > self.config.seq_len:
            raise ValueError(f"{stop} positions exceed model.seq_len={self.config.seq_len}: shorten the input.")
        if documents_bt is None:
            return self.rotary(start, stop)
        if caches:
            raise ValueError(
                "documents_bt and caches are both given: a cache continues one document, so leave one out."
            )
        if documents_bt.shape != ids_bt.shape:
            raise ValueError(f"documents_bt is {tuple(documents_bt.shape)}, but ids_bt is {tuple(ids_bt.shape)}.")
        return self.rotary.in_documents(documents_bt)

    def logits(self, hidden_btd: Tensor) -> Tensor:
        """(b, t, d) to (b, t, v). The factor keeps logits level over widths under muP; it is 1 otherwise."""
        return self.head(hidden_btd * self.config.width_ratio)

    def forward(
        self, ids_bt: Tensor, caches: list[KVCache] | None = None, documents_bt: Tensor | None = None
    ) -> Tensor:
        """Logits of the next token at every position, (b, t, v). Raises as ``hidden`` does."""
        return self.logits(self.hidden(ids_bt, caches, documents_bt))

    def loss(self, ids_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of ``targets_bt`` in nats per token; targets of -1 do not count."""
        return self.losses(ids_bt, targets_bt, documents_bt).objective

    def losses(
        self, ids_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None = None, z_loss: float = 0.0
    ) -> Losses:
        """What to minimise, ``loss`` plus ``z_loss`` times the mean squared log-partition, and both by themselves."""
        hidden_nd = self.hidden(ids_bt, documents_bt=documents_bt).flatten(0, 1) * self.config.width_ratio
        return linear_losses(hidden_nd, self.head.weight, targets_bt.flatten(), z_loss)

    @torch.no_grad()
    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor, documents_bt: Tensor | None = None) -> Tensor:
        """Cross-entropy of each of ``targets_bt`` in nats, (b, t) float32, without gradient; 0 where a target is -1."""
        hidden_nd = self.hidden(ids_bt, documents_bt=documents_bt).flatten(0, 1) * self.config.width_ratio
        return token_cross_entropy(hidden_nd, self.head.weight, targets_bt.flatten()).view(targets_bt.shape)

    @contextmanager
    def using_k(self, ks: list[int]) -> Iterator[None]:
        """Puts other k in force, one per site, for the length of a ``with`` block."""
        before = [site.k_on_host for site in self.sites]
        self.set_k(ks)
        try:
            yield
        finally:
            self.set_k(before)

    def set_k(self, ks: list[int]) -> None:
        """Puts k in force, one per site in the order of ``sites``."""
        for site, k in zip(self.sites, ks, strict=True):
            site.set_k(k)

    def set_checkpointing(self, how: str) -> None:
        """What training forward passes keep for the backward pass, which computes the rest again: everything
        (``none``), results of matrix products and attention (``selective``), every block's input (``block``), or that
        packed to its non-zeros where it comes from a TopK site (``block_sparse``). Raises ValueError for another."""
        if how not in CHECKPOINTING:
            raise ValueError(f"activation checkpointing {how!r}: choose from {', '.join(CHECKPOINTING)}.")
        for block in cast("list[Block]", list(self.blocks)):
            block.checkpointing = how

    def set_progress(self, progress: float) -> None:
        """Tells every site how far training has come, from 0 to 1."""
        for site in self.sites:
            site.set_progress(progress)
