"""In how many directions activations vary: the effective rank of Roy and Vetterli ("The effective rank: a measure of
effective dimensionality", EUSIPCO 2007).

Shapes: n tokens, d neurons.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class SecondMoments:
    """Gathers the covariance of activations over batches, in float64 (on the CPU where the device has none).

    Sums are taken of the distances from the first batch's mean: the covariance does not notice, and rounding does.
    """

    def __init__(self) -> None:
        self.count = 0

    @torch.no_grad()
    def add(self, x_nd: Tensor) -> None:
        """Takes up activations, (n, d)."""
        x_nd = (x_nd.cpu() if x_nd.device.type == "mps" else x_nd).double()
        n, d = x_nd.shape
        if self.count == 0:
            self._origin_d, self._sum_d, self._products_dd = x_nd.mean(0), x_nd.new_zeros(d), x_nd.new_zeros(d, d)
        x_nd = x_nd - self._origin_d
        self._sum_d += x_nd.sum(0)
        self._products_dd += x_nd.T @ x_nd
        self.count += n

    def covariance(self) -> Tensor:
        """(d, d) float64, dividing by the number of tokens, of which there must be one or more."""
        assert self.count > 0
        mean_d = self._sum_d / self.count
        return self._products_dd / self.count - torch.outer(mean_d, mean_d)


def effective_rank(covariance_dd: Tensor) -> float:
    """``exp(-sum_i p_i ln p_i)`` with ``p_i = s_i / sum_j s_j``, s_i being the singular values of the activations
    (n, d) after their mean over tokens is taken away: the square roots of the covariance's eigenvalues, up to a factor.

    Returns:
        1 (one direction) to d (all alike); 0 where nothing varies; NaN where activations are not finite.
    """
    if not bool(covariance_dd.isfinite().all()):
        return math.nan
    values_d = torch.linalg.eigvalsh(covariance_dd).flip(0)
    # An eigenvalue is known to a rounding error of the largest, of which the root would make much.
    values_d = values_d.where(values_d > values_d[0] * len(values_d) * torch.finfo(values_d.dtype).eps, 0)
    singular_d = values_d.clamp_min(0).sqrt()
    total = singular_d.sum()
    if total == 0:
        return 0.0
    return torch.special.entr(singular_d / total).sum().exp().item()
