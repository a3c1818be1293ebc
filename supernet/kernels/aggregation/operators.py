"""The primitives as torch operators: ``torch.ops.mixer_search.*``, with gradients and FLOPs.

All are derivatives of one form, linear in each of its four factors,

    sum over i, o, c of  multiplier[o, c] * filters[i, g(c), o] * x[i, c] * values[i + o, c]

so the gradients of each are again these operators, to any order: `aggregate` is its derivative by
x (transposed: by values), `logits` by the filters and `multiplier_grad` by the multiplier. Only
inputs are saved for the backward pass.
"""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from supernet.kernels.aggregation import in_c
from supernet.kernels.select import module_for

Grads = tuple[Tensor | None, ...]


@torch.library.custom_op("mixer_search::aggregate", mutates_args=())
def aggregate_op(
    filters: Tensor | None,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """Sum neighbours (B, H, W, C) with filters (B, H, W, G, K*K) times multiplier (K*K, C).

    The multiplier may be one for each image, (B, K*K, C).
    """
    return primitives_for(values).aggregate(
        filters, values, kernel_size, dilation, multiplier, bias, transposed
    )


@torch.library.custom_op("mixer_search::logits", mutates_args=())
def logits_op(
    x: Tensor,
    values: Tensor,
    groups: int,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
) -> Tensor:
    """Multiply maps (B, H, W, C) pixel by neighbour, summed over each group's channels."""
    return primitives_for(x).logits(x, values, groups, kernel_size, dilation, multiplier)


@torch.library.custom_op("mixer_search::multiplier_grad", mutates_args=())
def multiplier_grad_op(
    filters: Tensor | None,
    x: Tensor,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    per_image: bool,
) -> Tensor:
    """Sum over pixels what `aggregate` multiplies with the multiplier, (K*K, C) or (B, K*K, C)."""
    return primitives_for(x).multiplier_grad(filters, x, values, kernel_size, dilation, per_image)


@torch.library.custom_op("mixer_search::depthwise_grad", mutates_args=())
def depthwise_grad_op(
    grad: Tensor, values: Tensor, kernel_size: int, dilation: int, multiplier: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of values, multiplier and bias of `aggregate` without filters."""
    primitives = primitives_for(values)
    if primitives is in_c:
        return in_c.depthwise_grad(grad, values, kernel_size, dilation, multiplier)
    area = (kernel_size, dilation)
    return (
        primitives.aggregate(None, grad, *area, multiplier, None, True),
        primitives.multiplier_grad(None, grad, values, *area, multiplier.dim() == 3),
        grad.sum((0, 1, 2)),
    )


@torch.library.custom_op("mixer_search::skew", mutates_args=())
def skew_op(terms: Tensor, kernel_size: int, dilation: int, transposed: bool) -> Tensor:
    """Read tap o of (B, H, W, G, K*K) from the neighbour at offset o (transposed: minus o)."""
    return primitives_for(terms).skew(terms, kernel_size, dilation, transposed)


def primitives_for(tensor: Tensor) -> ModuleType:
    """Return the module whose primitives serve operands like this tensor."""
    return module_for(__package__, tensor)


@aggregate_op.register_fake
def _aggregate_shape(
    filters: Tensor | None,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    return values.new_empty(values.shape)


@logits_op.register_fake
def _logits_shape(
    x: Tensor,
    values: Tensor,
    groups: int,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
) -> Tensor:
    return x.new_empty((*x.shape[:3], groups, kernel_size**2))


@multiplier_grad_op.register_fake
def _multiplier_grad_shape(
    filters: Tensor | None,
    x: Tensor,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    per_image: bool,
) -> Tensor:
    images = x.shape[:1] if per_image else ()
    return x.new_empty((*images, kernel_size**2, x.shape[-1]))


@depthwise_grad_op.register_fake
def _depthwise_grad_shapes(
    grad: Tensor, values: Tensor, kernel_size: int, dilation: int, multiplier: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        values.new_empty(values.shape),
        multiplier.new_empty(multiplier.shape),
        values.new_empty(values.shape[-1]),
    )


@skew_op.register_fake
def _skew_shape(terms: Tensor, kernel_size: int, dilation: int, transposed: bool) -> Tensor:
    return terms.new_empty(terms.shape)


# torch hands over its own context objects, which carry what `setup_context` put on them.
def _save_aggregate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    filters, values, size, dilation, multiplier, _, ctx.transposed = inputs
    ctx.area = (size, dilation)
    ctx.save_for_backward(filters, values, multiplier)


def _aggregate_backward(ctx: Any, grad: Tensor) -> Grads:
    filters, values, multiplier = ctx.saved_tensors
    area, needs = ctx.area, ctx.needs_input_grad
    x, y = (values, grad) if ctx.transposed else (grad, values)
    grads: list[Tensor | None] = [None] * 7
    if filters is None and not ctx.transposed and needs[1] and needs[4]:
        grads[1], grads[4], bias_grad = depthwise_grad_op(grad, values, *area, multiplier)
        grads[5] = bias_grad if needs[5] else None
        return tuple(grads)
    if needs[0]:
        grads[0] = logits_op(x, y, filters.shape[3], *area, multiplier)
    if needs[1]:
        grads[1] = aggregate_op(filters, grad, *area, multiplier, None, not ctx.transposed)
    if needs[4]:
        grads[4] = multiplier_grad_op(filters, x, y, *area, multiplier.dim() == 3)
    if needs[5]:
        grads[5] = grad.sum((0, 1, 2))
    return tuple(grads)


def _save_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, size, dilation, multiplier = inputs
    ctx.area = (size, dilation)
    ctx.save_for_backward(x, values, multiplier)


def _logits_backward(ctx: Any, grad: Tensor) -> Grads:
    x, values, multiplier = ctx.saved_tensors
    area, needs = ctx.area, ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 6
    if needs[0]:
        grads[0] = aggregate_op(grad, values, *area, multiplier, None, False)
    if needs[1]:
        grads[1] = aggregate_op(grad, x, *area, multiplier, None, True)
    if needs[5]:
        grads[5] = multiplier_grad_op(grad, x, values, *area, multiplier.dim() == 3)
    return tuple(grads)


def _save_multiplier_grad(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    filters, x, values, size, dilation, _ = inputs
    ctx.area = (size, dilation)
    ctx.save_for_backward(filters, x, values)


def _multiplier_grad_backward(ctx: Any, grad: Tensor) -> Grads:
    filters, x, values = ctx.saved_tensors
    area, needs = ctx.area, ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 6
    if needs[0]:
        grads[0] = logits_op(x, values, filters.shape[3], *area, grad)
    if needs[1]:
        grads[1] = aggregate_op(filters, values, *area, grad, None, False)
    if needs[2]:
        grads[2] = aggregate_op(filters, x, *area, grad, None, True)
    return tuple(grads)


def _save_depthwise_grad(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    grad, values, size, dilation, multiplier = inputs
    ctx.area = (size, dilation)
    ctx.save_for_backward(grad, values, multiplier)


def _depthwise_grad_backward(
    ctx: Any, values_grad: Tensor, multiplier_grad: Tensor, bias_grad: Tensor
) -> Grads:
    grad, values, multiplier = ctx.saved_tensors
    area, needs = ctx.area, ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 5
    if needs[0]:
        grads[0] = aggregate_op(None, values_grad, *area, multiplier, None, False)
        grads[0] += aggregate_op(None, values, *area, multiplier_grad, bias_grad, False)
    if needs[1]:
        grads[1] = aggregate_op(None, grad, *area, multiplier_grad, None, True)
    if needs[4]:
        grads[4] = multiplier_grad_op(None, grad, values_grad, *area, multiplier.dim() == 3)
    return tuple(grads)


def _save_skew(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, size, dilation, ctx.transposed = inputs
    ctx.area = (size, dilation)


def _skew_backward(ctx: Any, grad: Tensor) -> Grads:
    return skew_op(grad, *ctx.area, not ctx.transposed), None, None, None


aggregate_op.register_autograd(_aggregate_backward, setup_context=_save_aggregate)
logits_op.register_autograd(_logits_backward, setup_context=_save_logits)
multiplier_grad_op.register_autograd(_multiplier_grad_backward, setup_context=_save_multiplier_grad)
depthwise_grad_op.register_autograd(_depthwise_grad_backward, setup_context=_save_depthwise_grad)
skew_op.register_autograd(_skew_backward, setup_context=_save_skew)


# Formulas get the operator's arguments with shapes in the place of tensors. A filter applied once
# to N tokens of C channels is N*C*K*K multiply-accumulates; a multiplier costs nothing extra.
@register_flop_formula(torch.ops.mixer_search.aggregate)
def _aggregate_flops(
    filters: object, values: tuple[int, ...], kernel_size: int, *rest: object, out_shape: object
) -> int:
    return 2 * prod(values) * kernel_size**2


@register_flop_formula(torch.ops.mixer_search.logits)
def _logits_flops(
    x: tuple[int, ...],
    values: object,
    groups: int,
    kernel_size: int,
    *rest: object,
    out_shape: object,
) -> int:
    return 2 * prod(x) * kernel_size**2


@register_flop_formula(torch.ops.mixer_search.multiplier_grad)
def _multiplier_grad_flops(
    filters: object, x: tuple[int, ...], values: object, kernel_size: int, *, out_shape: object
) -> int:
    return 2 * prod(x) * kernel_size**2


@register_flop_formula(torch.ops.mixer_search.depthwise_grad)
def _depthwise_grad_flops(
    grad: tuple[int, ...], values: object, kernel_size: int, *rest: object, out_shape: object
) -> int:
    return 4 * prod(grad) * kernel_size**2
