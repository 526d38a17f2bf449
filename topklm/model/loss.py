"""Cross-entropy of the head, chunk by chunk, so that the logits of a whole batch never exist at once.

Logits are the largest tensor of a small language model: 2,048 tokens by 4,096 entries are 32 MB in float32, and plain
autograd passes over them some six times. Here each chunk's logits live only while its loss and gradients are taken, in
the forward pass, which needs no second visit. Shapes: n tokens, d model width, v vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A chunk of float32 logits that stays in a CPU's cache, and one that keeps a GPU busy.
CHUNK_BYTES = {"cpu": 8 << 20}
CHUNK_BYTES_ELSEWHERE = 512 << 20


class Losses(NamedTuple):
    """What a training step looks at: means over targets that are not -1, 0-d float32.

    Attributes:
        objective: cross-entropy plus the weighted z-loss; the only one with a gradient.
        cross_entropy: in nats. squared_log_z: of ``logsumexp(logits) ** 2``, 0 where the z-loss is off.
    """

    objective: Tensor
    cross_entropy: Tensor
    squared_log_z: Tensor


def linear_cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
    """Mean of ``-log softmax(hidden @ weight.T)[target]`` in nats, over targets that are not -1; 0-d float32.

    Under autocast the products run in the autocast type; softmax and sums are float32.
    """
    return linear_losses(hidden_nd, weight_vd, targets_n).objective


def linear_losses(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, z_loss: float = 0.0) -> Losses:
    """``linear_cross_entropy`` with ``z_loss`` times the mean squared log-partition on top, which keeps logits from
    drifting off together (PaLM, arXiv 2204.02311, section 5). One pass gives all of it."""
    return Losses(*_losses(hidden_nd, weight_vd, targets_n, z_loss)[:3])


@torch.no_grad()
def token_cross_entropy(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> Tensor:
    """The terms of ``linear_cross_entropy``'s mean: nats per token, (n,) float32 without gradient; 0 where the target
    is -1."""
    return _losses(hidden_nd, weight_vd, targets_n, 0.0)[3]


def _losses(hidden_nd: Tensor, weight_vd: Tensor, targets_n: Tensor, z_loss: float) -> tuple[Tensor, ...]:
    device = hidden_nd.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_nd.dtype
    # Inside the function gradients are always off, and ``needs_input_grad`` is true of parameters even under no_grad.
    backward = torch.is_grad_enabled() and (hidden_nd.requires_grad or weight_vd.requires_grad)
    return _ChunkedCrossEntropy.apply(hidden_nd, weight_vd, targets_n, dtype, backward, z_loss)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The objective, with its gradient; cross-entropy, squared log-partition and the tokens' terms, without."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        dtype: torch.dtype,
        backward: bool,
        z_loss: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n, v = hidden_nd.shape[0], weight_vd.shape[0]
        chunk = max(1, CHUNK_BYTES.get(hidden_nd.device.type, CHUNK_BYTES_ELSEWHERE) // (4 * v))
        weight = weight_vd.to(dtype)
        grad_hidden_nd = torch.empty_like(hidden_nd) if backward else None
        grad_weight_vd = torch.zeros_like(weight_vd, dtype=torch.float32) if backward else None
        valid_n = targets_n >= 0
        nats_n1 = hidden_nd.new_empty((n, 1), dtype=torch.float32)
        total, total_z = (hidden_nd.new_zeros((), dtype=torch.float32) for _ in range(2))
        # The products below are in ``dtype`` by their operands, so autocast has nothing left to do.
        with torch.autocast(hidden_nd.device.type, enabled=False):
            for first in range(0, n, chunk):
                rows = slice(first, first + chunk)
                hidden = hidden_nd[rows].to(dtype)
                valid_c1 = valid_n[rows, None]
                targets_c1 = targets_n[rows, None].clamp_min(0)
                logits_cv = F.linear(hidden, weight).float()
                log_p_cv = F.log_softmax(logits_cv, dim=-1)
                nats_n1[rows] = -log_p_cv.gather(1, targets_c1) * valid_c1
                total += nats_n1[rows].sum()
                if z_loss:  # log Z = logit - log p of any entry, which saves a pass over them all
                    log_z_c1 = logits_cv.gather(1, targets_c1) - log_p_cv.gather(1, targets_c1)
                    total_z += (log_z_c1.square() * valid_c1).sum()
                if grad_hidden_nd is not None and grad_weight_vd is not None:
                    # d loss / d logits = p - onehot(target) + 2 z_loss p log Z, times 1/count, which backward applies
                    p_cv = log_p_cv.exp_()
                    if z_loss:
                        p_cv.mul_(1 + 2 * z_loss * log_z_c1)
                    p_cv.scatter_add_(1, targets_c1, p_cv.new_full((1, 1), -1.0).expand_as(targets_c1))
                    grad_logits_cv = p_cv.mul_(valid_c1).to(dtype)
                    grad_hidden_nd[rows] = grad_logits_cv @ weight
                    grad_weight_vd += grad_logits_cv.T @ hidden
        count = valid_n.sum()
        if backward:
            ctx.save_for_backward(grad_hidden_nd, grad_weight_vd, count)
            ctx.weight_dtype = weight_vd.dtype
        nats_n = nats_n1.squeeze(1)
        cross_entropy, squared_log_z = total / count, total_z / count
        objective = cross_entropy + z_loss * squared_log_z if z_loss else cross_entropy.clone()
        ctx.mark_non_differentiable(cross_entropy, squared_log_z, nats_n)
        ctx.set_materialize_grads(False)
        return objective, cross_entropy, squared_log_z, nats_n

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        grad_hidden_nd, grad_weight_vd, count = ctx.saved_tensors
        scale = grad / count
        return grad_hidden_nd * scale, (grad_weight_vd * scale).to(ctx.weight_dtype), None, None, None, None
