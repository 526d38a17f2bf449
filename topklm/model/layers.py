"""The small parts of a block: RMSNorm, rotary positions and the documents they count in, SwiGLU.

Shapes: b batch, h heads, t position, s position that is seen, e head width, d model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .site import TopKSite


class RMSNorm(nn.Module):
    """Divides by the root mean square and multiplies by a gain. It subtracts no mean, so a zero stays a zero: TopK's
    zeros keep their meaning."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # Written out: F.rms_norm takes twice as long in eager mode on a CPU, and torch.compile fuses either into one
        # kernel.
        x32 = x.float()
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps) * self.gain).type_as(x)


def document_numbers(ids_bt: Tensor, eot_id: int) -> Tensor:
    """The document that each token of packed windows belongs to, (b, t) int64, counted within the window.

    A document begins with its end-of-text token ``eot_id``; number 0 is what is left of one that began before the
    window.
    """
    return (ids_bt == eot_id).cumsum(-1)


class Positions(NamedTuple):
    """Where the tokens of a forward pass stand and which of them they see; made once, and the same for every block.

    Attributes:
        cos, sin: of the angles by which rotary positions turn a head, (t, e/2), or (b, 1, t, e/2) in documents.
        sees_b1ts: True where the token at t attends to the token at s; None: to every s up to its own.
    """

    cos: Tensor
    sin: Tensor
    sees_b1ts: Tensor | None = None

    def turn(self, x_bhte: Tensor) -> Tensor:
        """Turns heads by their tokens' positions."""
        cos, sin = self.cos.type_as(x_bhte), self.sin.type_as(x_bhte)
        first, second = x_bhte.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864): pairs (i, i + e/2) of a head turn by an angle proportional
    to the position."""

    cos_te: Tensor
    sin_te: Tensor

    def __init__(self, head_dim: int, seq_len: int, theta: float) -> None:
        super().__init__()
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angle = torch.outer(torch.arange(seq_len, dtype=torch.float32), frequency)
        self.register_buffer("cos_te", angle.cos(), persistent=False)
        self.register_buffer("sin_te", angle.sin(), persistent=False)

    def forward(self, start: int, stop: int) -> Positions:
        """Positions start, start + 1, ..., stop - 1 of one document."""
        return Positions(self.cos_te[start:stop], self.sin_te[start:stop])

    def in_documents(self, documents_bt: Tensor) -> Positions:
        """Positions that count from each document's first token, and see no other document. ``documents_bt`` does not
        decrease along t."""
        documents_bt = documents_bt.contiguous()
        first_bt = torch.searchsorted(documents_bt, documents_bt)  # finds the leftmost of equal numbers
        position_b1t = (torch.arange(documents_bt.shape[1], device=documents_bt.device) - first_bt)[:, None]
        sees_b1ts = (documents_bt[:, None, :, None] == documents_bt[:, None, None, :]).tril()
        return Positions(self.cos_te[position_b1t], self.sin_te[position_b1t], sees_b1ts)


class SwiGLU(nn.Module):
    """The MLP ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv 2002.05202), with an optional TopK site on its
    neurons."""

    def __init__(self, config: ModelConfig, site: TopKSite | None = None) -> None:
        super().__init__()
        assert config.d_ff is not None
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.topk = site

    def forward(self, x_btd: Tensor) -> Tensor:
        gate, up = self.gate_up(x_btd).chunk(2, dim=-1)
        neurons = F.silu(gate) * up
        if self.topk is not None:
            neurons = self.topk(neurons)
        return self.down(neurons)
