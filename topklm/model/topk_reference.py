"""TopK by a stable sort: slow, obvious, and the contract that every faster path is tested against.

Shapes: n tokens, d neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sum_type(x: Tensor, added: Tensor | None) -> torch.dtype:
    """The type of ``x + added``, as torch promotes it."""
    return x.dtype if added is None else torch.promote_types(x.dtype, added.dtype)


def scores(x_nd: Tensor, select: str, bias_d: Tensor | None) -> Tensor:
    """What entries are chosen by, (n, d): their value or magnitude, and the neuron's bias where there is one.

    Sums are float32, and float64 for a float64 ``x``, so that a narrow type rounds no difference away.
    """
    score_nd = x_nd.abs() if select == "magnitude" else x_nd
    return score_nd if bias_d is None else score_nd + bias_d  # torch promotes to the wider type


def keep_mask(x_nd: Tensor, k: Tensor, select: str, bias_d: Tensor | None = None) -> Tensor:
    """Which entries TopK keeps: exactly min(k, d) per row, ties by lowest index, NaN above everything.

    Args:
        x_nd: (n, d), any floating dtype.
        k: 0-d integer tensor on the device of ``x_nd``; it is never read on the host, so a GPU is not made to wait.
        select: ``value`` or ``magnitude``.
        bias_d: (d,) float32, added to values or magnitudes before they are compared; None for none.

    Returns:
        (n, d) bool.
    """
    # A stable descending sort puts NaN first and equal values in the order of their index: the whole contract in one
    # call.
    order_nd = scores(x_nd, select, bias_d).sort(dim=-1, descending=True, stable=True).indices
    rank_kept_d = torch.arange(x_nd.shape[-1], device=x_nd.device) < k
    return torch.zeros_like(x_nd, dtype=torch.bool).scatter_(-1, order_nd, rank_kept_d.expand_as(order_nd))


def topk_forward(
    x_nd: Tensor, k: Tensor, select: str, relu: bool, stats: bool, bias_d: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output of TopK, what was kept, and what the telemetry needs: see ``keep``."""
    return keep(x_nd, keep_mask(x_nd, k, select, bias_d), select, relu, stats, bias_d)


def keep(
    x_nd: Tensor, kept_nd: Tensor, select: str, relu: bool, stats: bool, bias_d: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Passes the entries of ``kept_nd``, whoever chose them, and counts.

    Returns:
        ``y`` (n, d): the kept entries, zero elsewhere. ``kept`` (n, d) bool: where the gradient flows under
        ``grad=masked``. ``fired`` (d,) int32: on how many rows each neuron is non-zero. ``sums`` (3,) float32: over
        rows, the sum of the share of energy kept ``|y|^2 / |x|^2``, of the smallest kept score (the threshold: a value
        or magnitude, and the bias), and the number of non-zeros. With ``stats`` False the last two are empty.
    """
    out_nd = kept_nd & ~(x_nd <= 0) if relu else kept_nd  # "not <= 0" keeps NaN, which must not be hidden
    y_nd = torch.where(out_nd, x_nd, torch.zeros((), dtype=x_nd.dtype, device=x_nd.device))
    if not stats:
        empty = x_nd.new_empty(0, dtype=torch.float32)
        return y_nd, out_nd, empty.to(torch.int32), empty
    fires_nd = y_nd != 0
    fired_d = fires_nd.sum(0, dtype=torch.int32)
    energy_n = y_nd.float().square().sum(-1) / x_nd.float().square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    infinity = torch.full((), float("inf"), device=x_nd.device)
    threshold_n = torch.where(kept_nd, scores(x_nd, select, bias_d).float(), infinity).amin(-1)
    sums = torch.stack([energy_n.sum(), threshold_n.sum(), fired_d.sum().float()])
    return y_nd, out_nd, fired_d, sums
