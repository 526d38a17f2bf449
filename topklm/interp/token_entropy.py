"""On how many kinds of tokens a neuron fires: the entropy of the tokens at its firings, at an equal number of firings.

An estimate of entropy grows with the number of firings it is made from, so a neuron that fires often would seem to mean
more than one that fires seldom. Shapes: n tokens, d neurons, v token types.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_CELLS = 1 << 24  # of the counts held at once


def draw_order(n: int, seed: int) -> Tensor:
    """A fixed random order of n tokens, (n,) int64 on the CPU; leaves torch's own random state alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def token_entropy(fired_nd: Tensor, ids_n: Tensor, firings: int, order_n: Tensor) -> Tensor:
    """``-sum_v p(v) log2 p(v)`` per neuron, p being the shares of token types at ``firings`` of its firings: those that
    come first in ``order_n``. In a random order they are drawn at random, without putting back.

    Args:
        fired_nd: (n, d) bool. ids_n: (n,) the token at each position. order_n: (n,) a permutation.

    Returns:
        (d,) float64 bits on the CPU, from 0 to ``log2(firings)``; NaN for neurons with fewer firings.
    """
    order_n = order_n.to(fired_nd.device)
    fired_nd = fired_nd[order_n]
    types, type_n = ids_n.to(fired_nd.device)[order_n].unique(return_inverse=True)
    at_once = max(1, MAX_CELLS // len(types))
    parts = [_entropy(part_nd, type_n, len(types), firings) for part_nd in fired_nd.split(at_once, dim=1)]
    return torch.cat(parts)


def _entropy(fired_nd: Tensor, type_n: Tensor, types: int, firings: int) -> Tensor:
    d = fired_nd.shape[1]
    seen_nd = fired_nd.cumsum(0, dtype=torch.int32)
    place, neuron = (fired_nd & (seen_nd <= firings)).nonzero(as_tuple=True)
    counts_vd = torch.bincount(type_n[place] * d + neuron, minlength=types * d).view(types, d).cpu()
    # -sum c/m log2(c/m) = log2 m - sum c log2 c / m; entr(c) is -c ln c.
    bits_d = math.log2(firings) + torch.special.entr(counts_vd.double()).sum(0) / (firings * math.log(2))
    return bits_d.clamp_min(0).where(seen_nd[-1].cpu() >= firings, math.nan)
