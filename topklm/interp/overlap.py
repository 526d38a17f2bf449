"""How much two sets of active neurons have in common: the Jaccard index, and what chance would give.

Shapes: d neurons.
"""

from __future__ import annotations

from torch import Tensor


def jaccard(a: Tensor, b: Tensor) -> float:
    """The mean over tokens of ``|A and B| / |A or B|``, A and B being the neurons that fire.

    Args:
        a, b: (..., d) bool. Tokens at which neither has any are left out.

    Returns:
        0 (nothing in common) to 1 (the same); NaN if no token is left.
    """
    both = (a & b).sum(-1)
    either = (a | b).sum(-1)
    found = either > 0
    return (both[found] / either[found]).double().mean().item() if bool(found.any()) else float("nan")


def chance_overlap(a: float, b: float, d: int) -> float:
    """About the Jaccard index of random sets of ``a`` and ``b`` of ``d`` neurons: the expected intersection ``ab / d``
    over the union that goes with it. For equal sets of k it is ``k / (2d - k)``."""
    both = a * b / d
    return both / (a + b - both) if a + b else float("nan")
