"""Cross-entropy of the head, chunk by chunk, so that the logits of a whole batch never exist at once.

Logits are the largest tensor of a small language model: 2,048 tokens by 4,096 entries are 32 MB in float32, and plain
autograd passes over them some six times. Here each chunk's logits live only while its loss and gradients are taken, in
the forward pass, which needs no second visit. Shapes: n tokens, d model width, v vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# A chunk of float32 logits that stays in a CPU's cache, and one that keeps a GPU busy.
CHUNK_BYTES = {"cpu": 8 << 20}
CHUNK_BYTES_ELSEWHERE = 512 << 20


def linear_cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
    """Mean of ``-log softmax(hidden @ weight.T)[target]`` in nats, over targets that are not -1; 0-d float32.

    Under autocast the products run in the autocast type; softmax and sums are float32.
    """
    return _cross_entropy(hidden_nd, weight_vd, targets_n)[0]


@torch.no_grad()
def token_cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
    """The terms of ``linear_cross_entropy``'s mean: nats per token, (n,) float32 without gradient; 0 where the target
    is -1."""
    return _cross_entropy(hidden_nd, weight_vd, targets_n)[1]


def _cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    device = hidden_nd.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_nd.dtype
    # Inside the function gradients are always off, and ``needs_input_grad`` is true of parameters even under no_grad.
    backward = torch.is_grad_enabled() and (hidden_nd.requires_grad or weight_vd.requires_grad)
    return _ChunkedCrossEntropy.apply(hidden_nd, weight_vd, targets_n, dtype, backward)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The mean, with its gradient, and the tokens' terms, without."""

    @staticmethod
    def forward(
        ctx: Any, hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, dtype: torch.dtype, backward: bool
    ) -> tuple[Tensor, Tensor]:
        n, v = hidden_nd.shape[0], weight_vd.shape[0]
        chunk = max(1, CHUNK_BYTES.get(hidden_nd.device.type, CHUNK_BYTES_ELSEWHERE) // (4 * v))
        weight = weight_vd.to(dtype)
        grad_hidden_nd = torch.empty_like(hidden_nd) if backward else None
        grad_weight_vd = torch.zeros_like(weight_vd, dtype=torch.float32) if backward else None
        valid_n = targets_n >= 0
        nats_n1 = hidden_nd.new_empty((n, 1), dtype=torch.float32)
        total = hidden_nd.new_zeros((), dtype=torch.float32)
        # The products below are in ``dtype`` by their operands, so autocast has nothing left to do.
        with torch.autocast(hidden_nd.device.type, enabled=False):
            for first in range(0, n, chunk):
                rows = slice(first, first + chunk)
                hidden = hidden_nd[rows].to(dtype)
                valid_c1 = valid_n[rows, None]
                targets_c1 = targets_n[rows, None].clamp_min(0)
                log_p_cv = F.log_softmax(F.linear(hidden, weight).float(), dim=-1)
                nats_n1[rows] = -log_p_cv.gather(1, targets_c1) * valid_c1
                total += nats_n1[rows].sum()
                if grad_hidden_nd is not None and grad_weight_vd is not None:
                    # d loss / d logits = p - onehot(target), times 1/count, which backward applies
                    p_cv = log_p_cv.exp_()
                    p_cv.scatter_add_(1, targets_c1, p_cv.new_full((1, 1), -1.0).expand_as(targets_c1))
                    grad_logits_cv = p_cv.mul_(valid_c1).to(dtype)
                    grad_hidden_nd[rows] = grad_logits_cv @ weight
                    grad_weight_vd += grad_logits_cv.T @ hidden
        count = valid_n.sum()
        if backward:
            ctx.save_for_backward(grad_hidden_nd, grad_weight_vd, count)
            ctx.weight_dtype = weight_vd.dtype
        nats_n = nats_n1.squeeze(1)
        ctx.mark_non_differentiable(nats_n)
        ctx.set_materialize_grads(False)
        return total / count, nats_n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        grad_hidden_nd, grad_weight_vd, count = ctx.saved_tensors
        scale = grad / count
        return grad_hidden_nd * scale, (grad_weight_vd * scale).to(ctx.weight_dtype), None, None, None
