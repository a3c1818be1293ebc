"""The primitives as torch operators: ``torch.ops.mixer_search.*``, with gradients and FLOPs.

Both are derivatives of one form, linear in each of its three factors,

    sum over t, o, u, c of  weights[t, h(c), o, u] * x[s*t + o, c] * values[s*t + u, c]

so the gradients of each are again these operators, to any order: `outlook_aggregate` is its
derivative by x (transposed: by values), `outlook_products` by the weights. Only inputs are saved
for the backward pass.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from supernet.kernels.select import module_for

Grads = tuple[Tensor | None, ...]


@torch.library.custom_op("mixer_search::outlook_aggregate", mutates_args=())
def outlook_aggregate_op(
    weights: Tensor, values: Tensor, kernel_size: int, stride: int, transposed: bool
) -> Tensor:
    """Make outputs of the values (B, H, W, C) around tokens, summed where they overlap.

    The weights are (B, ceil(H/s), ceil(W/s), N, K*K outputs, K*K values); transposed, their last
    two axes change roles.
    """
    return module_for(__package__, values).aggregate(
        weights, values, kernel_size, stride, transposed
    )


@torch.library.custom_op("mixer_search::outlook_products", mutates_args=())
def outlook_products_op(
    x: Tensor, values: Tensor, heads: int, kernel_size: int, stride: int
) -> Tensor:
    """Multiply the pixels of two maps around every token, summed over each head's channels."""
    return module_for(__package__, x).products(x, values, heads, kernel_size, stride)


@outlook_aggregate_op.register_fake
def _aggregate_shape(
    weights: Tensor, values: Tensor, kernel_size: int, stride: int, transposed: bool
) -> Tensor:
    return values.new_empty(values.shape)


@outlook_products_op.register_fake
def _products_shape(x: Tensor, values: Tensor, heads: int, kernel_size: int, stride: int) -> Tensor:
    rows, columns = ((size + stride - 1) // stride for size in x.shape[1:3])
    return x.new_empty((x.shape[0], rows, columns, heads, kernel_size**2, kernel_size**2))


# torch hands over its own context objects, which carry what `setup_context` put on them.
def _save_aggregate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weights, values, size, stride, ctx.transposed = inputs
    ctx.area = (size, stride)
    ctx.save_for_backward(weights, values)


def _aggregate_backward(ctx: Any, grad: Tensor) -> Grads:
    weights, values = ctx.saved_tensors
    needs = ctx.needs_input_grad
    x, y = (values, grad) if ctx.transposed else (grad, values)
    grads: list[Tensor | None] = [None] * 5
    if needs[0]:
        grads[0] = outlook_products_op(x, y, weights.shape[3], *ctx.area)
    if needs[1]:
        grads[1] = outlook_aggregate_op(weights, grad, *ctx.area, not ctx.transposed)
    return tuple(grads)


def _save_products(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, _, size, stride = inputs
    ctx.area = (size, stride)
    ctx.save_for_backward(x, values)


def _products_backward(ctx: Any, grad: Tensor) -> Grads:
    x, values = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * 5
    if needs[0]:
        grads[0] = outlook_aggregate_op(grad, values, *ctx.area, False)
    if needs[1]:
        grads[1] = outlook_aggregate_op(grad, x, *ctx.area, True)
    return tuple(grads)


outlook_aggregate_op.register_autograd(_aggregate_backward, setup_context=_save_aggregate)
outlook_products_op.register_autograd(_products_backward, setup_context=_save_products)


# Formulas get the operator's arguments with shapes in the place of tensors. Each weight takes part
# in as many multiply-accumulates as its head has channels.
@register_flop_formula(torch.ops.mixer_search.outlook_aggregate)
def _aggregate_flops(
    weights: tuple[int, ...], values: tuple[int, ...], *rest: object, out_shape: object
) -> int:
    return 2 * prod(weights) * (values[3] // weights[3])


@register_flop_formula(torch.ops.mixer_search.outlook_products)
def _products_flops(
    x: tuple[int, ...], values: object, heads: int, *rest: object, out_shape: tuple[int, ...]
) -> int:
    return 2 * prod(out_shape) * (x[3] // heads)
