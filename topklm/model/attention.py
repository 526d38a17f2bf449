"""Causal self-attention with rotary positions, optional grouped key/value heads and QK-norm, and a cache for
generation.

Shapes: b batch, h heads, t position, s position that is seen, e head width, d model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .layers import Positions, RMSNorm

# Up to this many positions, in bfloat16 on a CPU, attention written out as two products takes half the time of PyTorch
# 2.13's fused kernel (16 x 2 heads x 256 positions x 64, forward and backward: 7.3 ms against 16.0 ms; at 1,024
# positions the fused kernel wins).
WRITTEN_OUT_POSITIONS = 512


def attend(
    q_bhte: Tensor, k_bhse: Tensor, v_bhse: Tensor, is_causal: bool, scale: float, sees_b1ts: Tensor | None = None
) -> Tensor:
    """softmax(q k^T * scale) v per head, (b, h, t, e). Keys and values may have fewer heads, each serving a group of
    query heads. Where ``sees_b1ts`` is given, it alone says which s each t attends to, instead of ``is_causal``."""
    b, h, t, e = q_bhte.shape
    s = k_bhse.shape[-2]
    grouped = k_bhse.shape[1] != h
    if q_bhte.device.type != "cpu" or q_bhte.dtype != torch.bfloat16 or s > WRITTEN_OUT_POSITIONS:
        return F.scaled_dot_product_attention(
            q_bhte,
            k_bhse,
            v_bhse,
            attn_mask=sees_b1ts,
            is_causal=is_causal and sees_b1ts is None,
            scale=scale,
            enable_gqa=grouped,
        )
    if grouped:
        k_bhse, v_bhse = (x.repeat_interleave(h // x.shape[1], dim=1) for x in (k_bhse, v_bhse))
    if sees_b1ts is not None:
        mask = sees_b1ts.to(q_bhte.dtype).log().expand(b, h, t, s).reshape(b * h, t, s)  # log 1 = 0, log 0 = -inf
    else:
        mask = torch.zeros(t, s, dtype=q_bhte.dtype)
        if is_causal:
            mask.fill_(float("-inf")).triu_(1)
    q, k, v = (x.reshape(b * h, -1, e) for x in (q_bhte, k_bhse, v_bhse))
    weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
    return torch.bmm(weights, v).view(b, h, t, e)


class KVCache:
    """Keys and values of the positions seen so far, for one attention layer.

    Holds (b, h_kv, positions, e) each; ``length`` positions are filled.

    Args:
        dtype: of what is kept, and of the attention to it.
        positions: room for so many; None: for the whole window.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
        positions: int | None = None,
    ) -> None:
        shape = (batch, config.n_kv_heads or config.n_heads, positions or config.seq_len, config.head_dim)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k_bhte: Tensor, v_bhte: Tensor) -> tuple[Tensor, Tensor]:
        """Adds new positions; returns all keys and values so far."""
        stop = self.length + k_bhte.shape[-2]
        self.k[:, :, self.length : stop] = k_bhte
        self.v[:, :, self.length : stop] = v_bhte
        self.length = stop
        return self.k[:, :, :stop], self.v[:, :, :stop]


class Attention(nn.Module):
    """Multi-head attention through ``scaled_dot_product_attention`` (FlashAttention where the device has it)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.n_kv_heads is not None
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = nn.Linear(config.d_model, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim, bias=False)
        self.out = nn.Linear(self.n_heads * self.head_dim, config.d_model, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.scale = config.attention_scale

    def forward(self, x_btd: Tensor, positions: Positions, cache: KVCache | None = None) -> Tensor:
        b, t, _ = x_btd.shape
        heads = self.qkv(x_btd).view(b, t, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=1)
        q, k = positions.turn(self.q_norm(q)), positions.turn(self.k_norm(k))
        start = cache.length if cache is not None else 0
        if cache is not None:
            assert start == 0 or t == 1, "after the prompt, tokens come one by one"
            k, v = cache.append(k, v)
        y = attend(q.type_as(k), k, v, is_causal=start == 0, scale=self.scale, sees_b1ts=positions.sees_b1ts).type_as(q)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))
