"""Muon with matrices of one shape orthogonalised together.

``torch.optim.Muon`` (Jordan et al. 2024; updates of AdamW's size, Moonlight, arXiv 2502.16982) takes one matrix after
another, with some sixteen small products each. The result here is the same, from fewer and larger products. Shapes: n
matrices, r rows, c columns, r at most c.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

BATCH_BYTES = 64 << 20  # of bfloat16 matrices taken together: larger ones keep a device busy by themselves


class BatchedMuon(Muon):
    """``torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")``, with its arguments and its state dict."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            assert group["adjust_lr_fn"] == "match_rms_adamw"
            for parameters in _batches([p for p in group["params"] if p.grad is not None]):
                directions = [self._direction(parameter, group) for parameter in parameters]
                updates = orthogonalised(directions, group["ns_coefficients"], group["ns_steps"], group["eps"])
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * (0.2 * math.sqrt(max(parameter.shape))))
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient with its momentum."""
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        return grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


def _batches(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one shape, lying or standing, in batches."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
    for shape, alike in by_shape.items():
        size = max(1, BATCH_BYTES // (2 * math.prod(shape)))
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def orthogonalised(
    matrices: Sequence[Tensor], coefficients: tuple[float, float, float], steps: int, eps: float
) -> list[Tensor]:
    """Each matrix with its singular values brought near 1, in bfloat16, by a quintic Newton-Schulz iteration
    ``x <- a x + (b x x' + c (x x')^2) x``. All are of one shape, lying or standing."""
    a, b, c = coefficients
    standing = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    x_nrc = torch.stack([m.bfloat16().T if tall else m.bfloat16() for m, tall in zip(matrices, standing, strict=True)])
    x_nrc = x_nrc / x_nrc.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # the spectral norm is at most this one
    for _ in range(steps):
        gram_nrr = x_nrc @ x_nrc.mT
        x_nrc = torch.baddbmm(x_nrc, torch.baddbmm(gram_nrr, gram_nrr, gram_nrr, beta=b, alpha=c), x_nrc, beta=a)
    return [x.T if tall else x for x, tall in zip(x_nrc, standing, strict=True)]
