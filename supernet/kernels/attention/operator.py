"""Neighbourhood attention as one torch operator, ``torch.ops.mixer_search.attention``.

Only operands are saved for the backward pass, which computes the weights again. Beside the results
nothing of the size of the weights (B, H, W, heads, K*K) is stored in C and Triton; in torch it is.
"""

from __future__ import annotations

from math import prod
from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from supernet.kernels.attention.area import Area, Grads
from supernet.kernels.layout import join_channels
from supernet.kernels.select import module_for


@torch.library.custom_op("mixer_search::attention", mutates_args=())
def attention_op(
    queries: Tensor | None,
    keys: Tensor | None,
    values: Tensor,
    query_table: Tensor | None,
    key_table: Tensor | None,
    bias: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
    has_product: bool,
    norm: str,
) -> Tensor:
    """Attend to the neighbours; operands as in `Operands`, settings as in `Area`."""
    operands = (queries, keys, values, query_table, key_table, bias)
    area = Area(num_heads, kernel_size, dilation, scale, has_product, norm)
    return module_for(__package__, values).attention(operands, area)


@torch.library.custom_op("mixer_search::attention_grad", mutates_args=())
def attention_grad_op(
    grad: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    values: Tensor,
    query_table: Tensor | None,
    key_table: Tensor | None,
    bias: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
    has_product: bool,
    norm: str,
    # torch 2.6 reads an operator's types from this spelling only.
) -> List[Tensor]:  # noqa: UP006
    """Compute the gradients of the operands that are there, in their order.

    Those of queries, keys and values are slices of one tensor, the first: (B, H, W, up to 3 C).
    """
    operands = (queries, keys, values, query_table, key_table, bias)
    area = Area(num_heads, kernel_size, dilation, scale, has_product, norm)
    grads = module_for(__package__, values).attention_grad(grad, operands, area)
    maps, tables = ([x for x in part if x is not None] for part in (grads[:3], grads[3:]))
    return [join_channels(maps), *(table.contiguous() for table in tables)]


@attention_op.register_fake
def _shape(queries: Tensor | None, keys: Tensor | None, values: Tensor, *rest: object) -> Tensor:
    return values.new_empty(values.shape)


@attention_grad_op.register_fake
def _grad_shapes(grad: Tensor, *operands: Tensor | float | str | None) -> list[Tensor]:
    maps, tables = (
        [x for x in part if isinstance(x, Tensor)] for part in (operands[:3], operands[3:])
    )
    packed = grad.new_empty((*grad.shape[:3], len(maps) * grad.shape[3]))
    return [packed, *(table.new_empty(table.shape) for table in tables)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.area = inputs[6:]


def _backward(ctx: Any, grad: Tensor) -> Grads:
    operands = ctx.saved_tensors
    packed, *tables = attention_grad_op(grad, *operands, *ctx.area)
    found = iter((*packed.split(grad.shape[-1], -1), *tables))
    return (*(None if x is None else next(found) for x in operands), *(None,) * len(ctx.area))


attention_op.register_autograd(_backward, setup_context=_save)


def _num_products(operands: tuple[object, ...], settings: tuple[Any, ...]) -> int:
    """Count the terms that multiply each channel with K*K others."""
    return bool(settings[4]) + (operands[3] is not None) + (operands[4] is not None)


# Formulas get the operator's arguments with shapes in the place of tensors.
@register_flop_formula(torch.ops.mixer_search.attention)
def _flops(*arguments: Any, out_shape: object) -> int:
    operands, settings = arguments[:6], arguments[6:]
    return 2 * prod(operands[2]) * settings[1] ** 2 * (1 + _num_products(operands, settings))


@register_flop_formula(torch.ops.mixer_search.attention_grad)
def _grad_flops(*arguments: Any, out_shape: object) -> int:
    """Count the weights again, two gradients for each product and two for the aggregation."""
    operands, settings = arguments[1:7], arguments[7:]
    return 2 * prod(operands[2]) * settings[1] ** 2 * (2 + 3 * _num_products(operands, settings))
