"""The sparse residual stream between two blocks, kept for the backward pass as what is non-zero in it.

With ``trainer.activation_checkpointing=block_sparse`` a block keeps nothing but its input. After a TopK site that input
has k non-zeros a token, so k values and their places say it all, bit for bit: at k = d/8 in less than a fifth of the
bytes. k is known on the host, which is never made to wait.

Shapes: n tokens, d model width, k most non-zeros of a token, m bytes of a token's mask.
"""

from __future__ import annotations

import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from . import bits

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
WIDEST = torch.iinfo(torch.int16).max  # an index of a neuron, and of the place for what is none, is an int16


@dataclass(frozen=True)
class Packed:
    """A tensor that was ``shape``, of which a token has at most k non-zeros.

    Attributes:
        values_nk: what is not +0.0, from the left; the rest of a row is +0.0.
        places: (n, m) uint8, a bit per neuron as by ``bits.pack``; or (n, k) int16, the neurons' numbers, d where
            there is none.
    """

    shape: torch.Size
    values_nk: Tensor
    places: Tensor

    @property
    def nbytes(self) -> int:
        return self.values_nk.nbytes + self.places.nbytes


def packed_bytes(d: int, k: int, element: int) -> int:
    """Bytes of a token of ``d`` entries, each of ``element`` bytes, once packed to ``k``."""
    return k * element + min(bits.packed_width(d), 2 * k if d <= WIDEST else bits.packed_width(d))


def pays(d: int, k: int, element: int) -> bool:
    """Whether packing makes it smaller."""
    return packed_bytes(d, k, element) < d * element


def pack(x: Tensor, k: int) -> Packed:
    """Packs (..., d), of which no token may have more than ``k`` entries other than +0.0."""
    d = x.shape[-1]
    x_nd = x.detach().reshape(-1, d)
    there_nd = x_nd.view(BITS[x.element_size()]) != 0  # bits, so that -0.0 and NaN are kept as they are
    # What is not there goes to a column of its own, which is cut off again.
    column_nd = torch.where(there_nd, there_nd.cumsum(-1) - 1, k)
    values_nk = x_nd.new_zeros(len(x_nd), k + 1).scatter_(1, column_nd, x_nd)[:, :k].contiguous()
    if d <= WIDEST and 2 * k < bits.packed_width(d):
        neurons_nd = torch.arange(d, dtype=torch.int16, device=x.device).expand_as(x_nd)
        places = torch.full((len(x_nd), k + 1), d, dtype=torch.int16, device=x.device)
        return Packed(x.shape, values_nk, places.scatter_(1, column_nd, neurons_nd)[:, :k].contiguous())
    return Packed(x.shape, values_nk, bits.pack(there_nd))


def unpack(packed: Packed) -> Tensor:
    """The tensor that was packed, contiguous."""
    d, values_nk, places = packed.shape[-1], packed.values_nk, packed.places
    if places.dtype == torch.int16:
        x_nd = values_nk.new_zeros(len(values_nk), d + 1).scatter_(1, places.long(), values_nk)[:, :d]
        return x_nd.reshape(packed.shape)
    there_nd = bits.unpack(places, d)
    column_nd = (there_nd.cumsum(-1) - 1).clamp_min_(0)
    zero = values_nk.new_zeros(())
    return torch.where(there_nd, values_nk.gather(1, column_nd), zero).view(packed.shape)


def saved_packed(x: Tensor, k: int | None) -> AbstractContextManager[object]:
    """Inside a ``with`` block, what autograd saves of ``x`` for the backward pass is packed, and unpacked there.

    Args:
        x: (..., d), of which no token has more than ``k`` entries other than +0.0; None says that nothing is known of
            it. Where packing would not make it smaller it is saved as it is.
    """
    if k is None or not pays(x.shape[-1], k, x.element_size()):
        return nullcontext()

    sought = weakref.ref(x)  # autograd keeps the hooks, which must not keep x

    def keep(saved: Tensor) -> Tensor | Packed:
        original = sought()
        is_x = original is not None and (saved is original or saved.is_set_to(original))
        return pack(saved, k) if is_x else saved

    def give(kept: Tensor | Packed) -> Tensor:
        return unpack(kept) if isinstance(kept, Packed) else kept

    return torch.autograd.graph.saved_tensors_hooks(keep, give)
