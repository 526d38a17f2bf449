"""The TopK activation: of each token's d neurons, the k largest pass and the rest become zero.

Contract, whatever the implementation: exactly min(k, d) entries are kept; ties go to the lowest index; NaN counts as
the largest value and infinities as what they are, so that neither is hidden; k >= d is the identity. Only
``statistical`` keeps about k instead. Selection is per token: choosing over several tokens at once would let later ones
decide what earlier ones keep. What is kept passes unchanged, also where a bias had a part in the choice. Source: "TopK
Language Models", arXiv 2506.21468.

The work is one torch custom op, opaque to torch.compile, with k as a tensor: a schedule can move k at every step
without a recompilation. Shapes: n tokens, d neurons.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from . import topk_reference, topk_statistical, topk_threshold
from .config import GRAD, IMPL, SELECT


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
        impl: ``reference`` (a stable sort), ``threshold`` (a search in C, CPU only), ``auto``, the fastest of these
            that is there, or ``statistical``: about k entries, by an estimated threshold.

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
) -> tuple[Tensor, Tensor, Tensor]:
    """``topk``, and what fired, counted in the same pass; with what only training needs.

    The tensors among the arguments may change their values without a recompilation.

    Args:
        bias: (d,) float32, added to values or magnitudes (in float32, or float64 where ``x`` is) for the choice alone;
            equal sums tie, and ties go to the lowest index as ever.
        exact: 0-d bool on the CPU, wherever ``x`` is, so that it can be read without waiting for a device: True makes
            ``impl=statistical`` choose as ``auto`` does.
        ste_scale: 0-d float32, the factor on the gradient of entries that were not kept, under ``grad=ste``; None is 1.
        ste_reach: under ``grad=ste``, only the ``ste_reach * k`` largest entries get a gradient; None means all.

    Returns:
        ``y`` like ``x``; ``fired`` (d,) int32, the number of tokens on which each neuron is non-zero; ``sums`` (3,)
        float32, summed over tokens: the share of energy kept ``|y|^2 / |x|^2``, the threshold (smallest kept value, or
        magnitude), the number of non-zeros.
    """
    if select not in SELECT or grad not in GRAD or impl not in IMPL:
        raise ValueError(
            f"topk got select={select}, grad={grad}, impl={impl}: choose from {SELECT}, {GRAD} and {IMPL}."
        )
    if not x.is_floating_point() or x.dim() == 0:
        raise TypeError(
            f"topk wants a floating-point tensor with at least one dimension, not {x.dtype} of shape {tuple(x.shape)}."
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
    y, _, fired, sums = _topk_op(x, k, select, relu, grad, impl, stats, bias, exact, ste_scale, ste_reach)
    return y, fired, sums


def resolve_impl(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The implementation that ``impl`` means for tensors on ``device``: never ``auto``."""
    able = device.type == "cpu" and dtype in topk_threshold.NAMES
    if impl == "threshold" and not able:
        raise ValueError(
            f"topk.impl=threshold runs on a CPU in float32 or bfloat16, not on {device.type} in {dtype}: use "
            f"topk.impl=auto."
        )
    if impl == "auto":
        return "threshold" if able and _compiled_search_works() else "reference"
    return impl


@functools.cache
def _compiled_search_works() -> bool:
    try:
        topk_threshold.library()
    except topk_threshold.NoCompiler as error:
        warnings.warn(f"TopK runs by a sort, several times slower than the compiled search: {error}.", stacklevel=2)
        return False
    return True


def _forward(
    x_nd: Tensor, k: Tensor, select: str, relu: bool, impl: str, stats: bool, bias_d: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``topk_reference.topk_forward`` by the implementation ``impl``."""
    impl = resolve_impl(impl, x_nd.device, x_nd.dtype)
    if impl == "threshold":
        return topk_threshold.topk_forward(x_nd, int(k), select, relu, stats, bias_d)
    module = topk_statistical if impl == "statistical" else topk_reference
    return module.topk_forward(x_nd, k, select, relu, stats, bias_d)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_nd = x.contiguous().view(-1, x.shape[-1])
    if k.device.type == "cpu" and int(k) < 1:
        raise ValueError(f"k={int(k)}: TopK keeps at least 1 entry.")
    bias_d = None if bias is None else bias.contiguous()
    # Resolved in here, where torch.compile does not look.
    if impl == "statistical" and exact is not None and bool(exact):
        impl = "auto"
    y_nd, passes_nd, fired_d, sums = _forward(x_nd, k, select, relu, impl, stats, bias_d)
    if grad == "ste":  # straight-through over the selection alone: the ReLU keeps its own gradient
        if ste_reach is not None:
            reached_k = (k * ste_reach).ceil().long().clamp(min=k)
            reached_nd = _forward(x_nd, reached_k, select, relu, impl, False, bias_d)[1]
        else:
            reached_nd = ~(x_nd <= 0) if relu else torch.ones_like(passes_nd)
        passes_nd = REACHED * reached_nd.to(torch.uint8) - passes_nd.to(torch.uint8)  # what is kept is reached as well
    return y_nd.view(x.shape), passes_nd, fired_d, sums


@_topk_op.register_fake
def _(
    x: Tensor, k: Tensor, select: str, relu: bool, grad: str, impl: str, stats: bool, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d = x.shape[-1]
    mask_type = torch.uint8 if grad == "ste" else torch.bool
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty((x.numel() // d if d else 0, d), dtype=mask_type, device=x.device),
        torch.empty(d if stats else 0, dtype=torch.int32, device=x.device),
        torch.empty(3 if stats else 0, dtype=torch.float32, device=x.device),
    )


@torch.library.custom_op("topklm::mask_gradient", mutates_args=())
def _mask_gradient_op(grad: Tensor, mask: Tensor, impl: str, ste_scale: Tensor | None = None) -> Tensor:
    grad_nd = grad.contiguous().view(mask.shape)
    impl = "auto" if impl == "statistical" else impl  # a mask is a mask, whoever made it
    if mask.dtype == torch.bool and resolve_impl(impl, grad.device, grad.dtype) == "threshold":
        return topk_threshold.mask_gradient(grad_nd, mask).view(grad.shape)
    zero = torch.zeros((), dtype=grad.dtype, device=grad.device)
    if mask.dtype == torch.uint8:
        leaked_nd = grad_nd if ste_scale is None else (grad_nd * ste_scale).to(grad.dtype)
        return torch.where(mask == KEPT, grad_nd, torch.where(mask == REACHED, leaked_nd, zero)).view(grad.shape)
    return torch.where(mask, grad_nd, zero).view(grad.shape)


@_mask_gradient_op.register_fake
def _(grad: Tensor, mask: Tensor, impl: str, ste_scale: Tensor | None = None) -> Tensor:
    return torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.impl = inputs[5]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[9])


def _backward(ctx: Any, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    grad_x = None
    if grad_y is not None:
        mask, ste_scale = ctx.saved_tensors
        grad_x = _mask_gradient_op(grad_y, mask, ctx.impl, ste_scale)
    return (grad_x, *[None] * 10)


_topk_op.register_autograd(_backward, setup_context=_setup_context)
