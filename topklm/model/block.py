"""One transformer block, with TopK sites where the config puts them.

Shapes: b batch, t position, d model width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention, KVCache
from .checkpointing import checkpointed
from .config import ModelConfig
from .layers import Positions, RMSNorm, SwiGLU
from .site import TopKSite


class Block(nn.Module):
    """Pre-norm attention and MLP on a residual stream; after either residual add, and inside the MLP, TopK may act.

    At ``resid_post_mlp`` the residual stream itself becomes sparse, so all TopK blocks share one basis: neuron n of
    block i is neuron n of block j (arXiv 2506.21468).

    Attributes:
        checkpointing: what training forward passes keep for the backward pass, one of ``config.CHECKPOINTING``.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.checkpointing = "none"
        topk_layers = config.topk.topk_layers(config.n_layers)

        def site(name: str) -> TopKSite | None:
            if name not in config.topk.sites or layer not in topk_layers:
                return None
            width = config.site_width(name)
            return TopKSite(layer, name, width, config.topk.final_k(topk_layers.index(layer), width), config.topk)

        self.norm_attn = RMSNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config)
        self.topk_attn = site("resid_post_attn")
        self.norm_mlp = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config, site("mlp_neurons"))
        self.topk_mlp = site("resid_post_mlp")

    @property
    def most_kept(self) -> int | None:
        """The most non-zeros that a token has after a training forward pass; None where nobody knows: without TopK at
        its end, where k is estimated, and where hooks may add to what TopK kept."""
        site = self.topk_mlp
        if site is None or site._forward_hooks or self._forward_hooks:
            return None
        return site.most_kept

    def forward(self, x_btd: Tensor, positions: Positions, cache: KVCache | None = None) -> Tensor:
        if self.checkpointing != "none" and self.training and torch.is_grad_enabled():
            sites = (self.topk_attn, self.mlp.topk, self.topk_mlp)
            return checkpointed(self._compute, self.checkpointing, sites, x_btd, positions, cache)
        return self._compute(x_btd, positions, cache)

    def _compute(self, x_btd: Tensor, positions: Positions, cache: KVCache | None) -> Tensor:
        attended_btd = self.attn(self.norm_attn(x_btd), positions, cache)
        x_btd = x_btd + attended_btd if self.topk_attn is None else self.topk_attn(x_btd, attended_btd)
        mlp_btd = self.mlp(self.norm_mlp(x_btd))
        return x_btd + mlp_btd if self.topk_mlp is None else self.topk_mlp(x_btd, mlp_btd)
