"""A bit per entry: what TopK kept, packed for the backward pass.

Entry i of a row is bit i % 8 of byte i // 8, and each row begins with a byte of its own. Every implementation packs so.
Shapes: n tokens, d neurons, w = ceil(d / 8) bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_width(d: int) -> int:
    """Bytes that d bits take."""
    return (d + 7) // 8


def pack(kept_nd: Tensor) -> Tensor:
    """(n, d) bool to (n, w) uint8; the last byte's spare bits are zero."""
    n, d = kept_nd.shape
    width = packed_width(d)
    padded = torch.nn.functional.pad(kept_nd.to(torch.uint8), (0, 8 * width - d))
    place = torch.arange(8, dtype=torch.uint8, device=kept_nd.device)
    return (padded.view(n, width, 8) << place).sum(-1, dtype=torch.uint8)


def unpack(bits_nw: Tensor, d: int) -> Tensor:
    """(n, w) uint8 to (n, d) bool."""
    place = torch.arange(8, dtype=torch.uint8, device=bits_nw.device)
    return ((bits_nw[:, :, None] >> place) & 1).bool().flatten(1)[:, :d]
