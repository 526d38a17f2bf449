"""TopK by an estimate: each token keeps what lies above the value that a normal distribution of its mean and standard
deviation exceeds with probability k/d.

No search and no sort, a mean and a comparison only, so about k entries are kept rather than k. The threshold is that of
Spark Transformer (arXiv 2506.06644); what passes is not lowered by it as there, but left as it is. Shapes: n tokens, d
neurons.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .topk_reference import keep, scores


def keep_mask(x_nd: Tensor, k: Tensor, select: str, bias_d: Tensor | None = None) -> Tensor:
    """Which entries reach the estimated threshold: about k of a row, and at least one.

    By value the threshold is ``mean + std * z(1 - k/d)``, z being the normal quantile and std that of the row as it is
    (over d). By magnitude it is ``rms * z(1 - k/2d)``: the magnitude of a normal variable of mean zero exceeds that
    with probability k/d. A bias is added to what is compared and not to the estimate. A NaN keeps its whole row, so
    that it is not hidden; k >= d keeps everything.

    Args and returns: as of ``topk_reference.keep_mask``.
    """
    d = x_nd.shape[-1]
    x32_nd = x_nd if x_nd.dtype == torch.float64 else x_nd.float()
    share = (k / d).clamp(max=1.0).to(x32_nd.dtype)
    if select == "magnitude":
        threshold_n1 = x32_nd.square().mean(-1, keepdim=True).sqrt() * torch.special.ndtri(1 - share / 2)
        threshold_n1 = torch.where(share < 1, threshold_n1, 0.0)
    else:
        variance_n1, mean_n1 = torch.var_mean(x32_nd, dim=-1, correction=0, keepdim=True)
        threshold_n1 = mean_n1 + variance_n1.sqrt() * torch.special.ndtri(1 - share)
    score_nd = scores(x32_nd, select, bias_d)
    return ~(score_nd < torch.minimum(threshold_n1, score_nd.amax(-1, keepdim=True)))


def topk_forward(
    x_nd: Tensor, k: Tensor, select: str, relu: bool, stats: bool, bias_d: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``topk_reference.topk_forward``, about k entries of a row being kept."""
    return keep(x_nd, keep_mask(x_nd, k, select, bias_d), select, relu, stats, bias_d)
