"""The TopK activation: of each token's d neurons, the k largest pass and the rest become zero.

Contract, whatever the implementation: exactly min(k, d) entries are kept; ties go to the lowest index; NaN counts as
the largest value and infinities as what they are, so that neither is hidden; k >= d is the identity. Only
``statistical`` keeps about k instead. Selection is per token: choosing over several tokens at once would let later ones
decide what earlier ones keep. What is kept passes unchanged, also where a bias had a part in the choice. Source: "TopK
Language Models", arXiv 2506.21468.

The work is one torch custom op, opaque to torch.compile, with k as a tensor: a schedule can move k at every step
without a recompilation. The residual add before it is part of the op, so that the dense sum is never written, and what
is saved for the backward pass is a bit per entry. Shapes: n tokens, d neurons, w = ceil(d / 8) bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import topk_threshold
from .bits import packed_width, unpack
from .config import GRAD, IMPL, SELECT
from .implementations import resolve_impl, topk_forward, triton_kernels
from .topk_reference import sum_type


def topk(
    x: Tensor, k: int | Tensor, *, select: str = "value", relu: bool = False, grad: str = "masked", impl: str = "auto"
) -> Tensor:
    """Keeps the k largest entries of the last dimension, and puts zero elsewhere.

    Args:
        x: (..., d), float16, bfloat16, float32 or float64.
        k: entries to keep, at least 1; an int or a 0-d integer tensor. A tensor on a GPU is not read on the host, so
            its value is trusted there.
        select: keep the largest ``value``s or the largest ``magnitude``s.
        relu: then clip what was kept at zero.
        grad: ``masked`` passes the gradient of kept entries only; ``ste`` passes every entry's (straight-through over
            the selection).
        impl: ``reference`` (a stable sort), ``threshold`` (a search in C, CPU only), ``triton`` (the search as a GPU
            kernel), ``auto``, the fastest of these that is there, or ``statistical``: about k entries, by an estimated
            threshold.

    Returns:
        A tensor like ``x``, contiguous.

    Raises:
        ValueError: k below 1, or an unknown option. TypeError: x is not floating point, or k not an integer.
    """
    return topk_with_stats(x, k, select=select, relu=relu, grad=grad, impl=impl, stats=False)[0]


def topk_with_stats(
    x: Tensor,
    k: int | Tensor,
    *,
    select: str = "value",
    relu: bool = False,
    grad: str = "masked",
    impl: str = "auto",
    stats: bool = True,
    bias: Tensor | None = None,
    exact: Tensor | None = None,
    ste_scale: Tensor | None = None,
    ste_reach: float | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``topk``, and what fired, counted in the same pass; with what only training needs.

    The tensors among the arguments may change their values without a recompilation.

    Args:
        added: of the shape of ``x``: TopK is of ``x + added`` then, in the type that torch gives this sum. ``x`` in
            what follows means the sum.
        bias: (d,) float32, added to values or magnitudes (in float32, or float64 where ``x`` is) for the choice alone;
            equal sums tie, and ties go to the lowest index as ever.
        exact: 0-d bool on the CPU, wherever ``x`` is, so that it can be read without waiting for a device: True makes
            ``impl=statistical`` choose as ``auto`` does.
        ste_scale: 0-d float32, the factor on the gradient of entries that were not kept, under ``grad=ste``; None is 1.
        ste_reach: under ``grad=ste``, only the ``ste_reach * k`` largest entries get a gradient; None means all.

    Returns:
        ``y`` like ``x``; ``fired`` (d,) int32, the number of tokens on which each neuron is non-zero; ``sums`` (3,)
        float32, summed over tokens: the share of energy kept ``|y|^2 / |x|^2``, the threshold (smallest kept score:
        value or magnitude, and bias), the number of non-zeros.
    """
    if select not in SELECT or grad not in GRAD or impl not in IMPL:
        raise ValueError(
            f"topk got select={select}, grad={grad}, impl={impl}: choose from {SELECT}, {GRAD} and {IMPL}."
        )
    if not x.is_floating_point() or x.dim() == 0:
        raise TypeError(
            f"topk wants a floating-point tensor with at least one dimension, not {x.dtype} of shape {tuple(x.shape)}."
        )
    if added is not None and (not added.is_floating_point() or added.shape != x.shape):
        raise TypeError(
            f"added must be floating point of shape {tuple(x.shape)}, not {added.dtype} of {tuple(added.shape)}."
        )
    if bias is not None and (bias.shape != x.shape[-1:] or bias.dtype != torch.float32):
        raise TypeError(f"bias must be float32 of shape ({x.shape[-1]},), not {bias.dtype} of {tuple(bias.shape)}.")
    if isinstance(k, Tensor):
        if k.dim() != 0 or k.dtype.is_floating_point or k.dtype.is_complex or k.dtype == torch.bool:
            raise TypeError(f"k must be an int or a 0-d integer tensor, not {k.dtype} of shape {tuple(k.shape)}.")
    else:
        if isinstance(k, bool) or not isinstance(k, int):
            raise TypeError(f"k must be an int or a 0-d integer tensor, not {type(k).__name__}.")
        if k < 1:
            raise ValueError(f"k={k}: TopK keeps at least 1 entry.")
        k = torch.tensor(k, device=x.device)
    y, _, fired, sums = _topk_op(x, k, select, relu, grad, impl, stats, bias, exact, ste_scale, ste_reach, added)
    return y, fired, sums


# What the gradient of an entry is multiplied by, under grad=ste: 0, 1, or the scale of those not kept.
UNREACHED, KEPT, REACHED = 0, 1, 2


@torch.library.custom_op("topklm::topk", mutates_args=())
def _topk_op(
    x: Tensor,
    k: Tensor,
    select: str,
    relu: bool,
    grad: str,
    impl: str,
    stats: bool,
    bias: Tensor | None = None,
    exact: Tensor | None = None,
    ste_scale: Tensor | None = None,
    ste_reach: float | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    x_nd = x.contiguous().view(-1, d)
    added_nd = None if added is None else added.contiguous().view(-1, d)
    if k.device.type == "cpu" and int(k) < 1:
        raise ValueError(f"k={int(k)}: TopK keeps at least 1 entry.")
    bias_d = None if bias is None else bias.contiguous()
    # Resolved in here, where torch.compile does not look.
    if impl == "statistical" and exact is not None and bool(exact):
        impl = "auto"
    if grad == "ste" and added_nd is not None:  # the sum is asked for what was not kept as well
        x_nd, added_nd = x_nd + added_nd, None
    y_nd, passes, fired_d, sums = topk_forward(x_nd, added_nd, k, select, relu, impl, stats, bias_d)
    if grad == "ste":  # straight-through over the selection alone: the ReLU keeps its own gradient
        kept_nd = unpack(passes, d)
        if ste_reach is not None:
            reached_k = (k * ste_reach).ceil().long().clamp(min=k)
            reached_nd = unpack(topk_forward(x_nd, None, reached_k, select, relu, impl, False, bias_d)[1], d)
        else:
            reached_nd = ~(x_nd <= 0) if relu else torch.ones_like(kept_nd)
        passes = REACHED * reached_nd.to(torch.uint8) - kept_nd.to(torch.uint8)  # what is kept is reached as well
    # Made in the shape of x, so to speak: sharded modules (FSDP2) want outputs that are no views.
    return torch.ops.aten._unsafe_view(y_nd, x.shape), passes, fired_d, sums


@_topk_op.register_fake
def _(
    x: Tensor,
    k: Tensor,
    select: str,
    relu: bool,
    grad: str,
    impl: str,
    stats: bool,
    bias: Tensor | None = None,
    exact: Tensor | None = None,
    ste_scale: Tensor | None = None,
    ste_reach: float | None = None,
    added: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    n = x.numel() // d if d else 0
    return (
        torch.empty(x.shape, dtype=sum_type(x, added), device=x.device),
        torch.empty((n, d if grad == "ste" else packed_width(d)), dtype=torch.uint8, device=x.device),
        torch.empty(d if stats else 0, dtype=torch.int32, device=x.device),
        torch.empty(3 if stats else 0, dtype=torch.float32, device=x.device),
    )


@torch.library.custom_op("topklm::mask_gradient", mutates_args=())
def _mask_gradient_op(
    grad: Tensor,
    passes: Tensor,
    impl: str,
    coded: bool,
    ste_scale: Tensor | None = None,
    second: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of what passes, by ``coded``: by the codes of grad=ste, or by packed bits. It comes in its own type
    and, where ``second`` is given, in that as well (else empty)."""
    d = grad.shape[-1]
    grad_nd = grad.contiguous().view(-1, d)
    impl = resolve_impl("auto" if impl == "statistical" else impl, grad.device, grad.dtype)  # whoever made the mask
    second_nd = None
    if coded:
        zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
        leaked_nd = grad_nd if ste_scale is None else (grad_nd * ste_scale).to(grad.dtype)
        out_nd = torch.where(passes == KEPT, grad_nd, torch.where(passes == REACHED, leaked_nd, zero))
    elif impl == "triton":
        out_nd, second_nd = triton_kernels().mask_gradient(grad_nd, passes, second)
    elif impl == "threshold":
        out_nd, second_nd = topk_threshold.mask_gradient(grad_nd, passes, second if second == torch.bfloat16 else None)
    else:
        out_nd = torch.where(unpack(passes, d), grad_nd, torch.zeros((), dtype=grad.dtype, device=grad.device))
    if second_nd is None:
        second_nd = out_nd.new_empty(0) if second is None else out_nd.to(second)
    return out_nd.view(grad.shape), second_nd.view(grad.shape if second is not None else 0)


@_mask_gradient_op.register_fake
def _(
    grad: Tensor,
    passes: Tensor,
    impl: str,
    coded: bool,
    ste_scale: Tensor | None = None,
    second: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    second_shape = grad.shape if second is not None else (0,)
    return (
        torch.empty(grad.shape, dtype=grad.dtype, device=grad.device),
        torch.empty(second_shape, dtype=second or grad.dtype, device=grad.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, _, _, grad, impl, _, _, _, ste_scale, _, added = inputs
    ctx.impl, ctx.coded = impl, grad == "ste"
    ctx.dtypes = (x.dtype, None if added is None else added.dtype)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], ste_scale)


def _backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = [None] * 10
    if grad_y is None:
        return (None, *nothing, None)
    passes, ste_scale = ctx.saved_tensors
    # Both addends have one gradient, and one of them may have it in a narrower type than the sum. (Of float16 and
    # bfloat16 both are narrower than their sum; the cast of the latter is an operation of its own then.)
    narrower = [dtype for dtype in ctx.dtypes if dtype is not None and dtype != grad_y.dtype]
    second = narrower[0] if narrower else None
    wide, narrow = _mask_gradient_op(grad_y, passes, ctx.impl, ctx.coded, ste_scale, second)
    grad_x, grad_added = (
        None if dtype is None else narrow if dtype == second else wide.to(dtype) for dtype in ctx.dtypes
    )
    return (grad_x, *nothing, grad_added)


_topk_op.register_autograd(_backward, setup_context=_setup_context)
