"""The convolution of Hadamard logits as a torch operator, ``torch.ops.mixer_search.hadamard_conv``.

Only operands are saved for the backward pass, which computes the product again.
"""

from __future__ import annotations

from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from supernet.kernels.hadamard import in_c, in_torch
from supernet.kernels.select import serving


@torch.library.custom_op("mixer_search::hadamard_conv", mutates_args=())
def hadamard_conv_op(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> Tensor:
    """Convolve the product of queries and keys in groups."""
    return _module_for(weight).hadamard_conv(queries, keys, weight, bias, dilation)


@torch.library.custom_op("mixer_search::hadamard_conv_grad", mutates_args=())
def hadamard_conv_grad_op(
    grad: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, dilation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of queries, keys, weight and bias."""
    return _module_for(weight).hadamard_conv_grad(grad, queries, keys, weight, dilation)


def _module_for(weight: Tensor) -> ModuleType:
    """Return the module that serves these groups; PyTorch's convolution serves wide ones."""
    chosen = serving(__package__, weight)
    if chosen == "triton":
        # Not every torch brings Triton.
        from supernet.kernels.hadamard import in_triton

        return in_triton if in_triton.serves(weight) else in_torch
    return in_c if chosen == "c" and in_c.serves(weight) else in_torch


@hadamard_conv_op.register_fake
def _shape(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> Tensor:
    return queries.new_empty(queries.shape)


@hadamard_conv_grad_op.register_fake
def _grad_shapes(
    grad: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, dilation: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = (grad.shape, grad.shape, weight.shape, grad.shape[-1:])
    results = tuple(grad.new_empty(shape) for shape in shapes)
    return results[0], results[1], results[2], results[3]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    queries, keys, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(queries, keys, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # PyTorch's own convolution has the second derivatives, where they are wanted.
    has_second = torch.is_grad_enabled()
    find: Any = in_torch.hadamard_conv_grad if has_second else hadamard_conv_grad_op
    q_grad, k_grad, weight_grad, bias_grad = find(grad, *ctx.saved_tensors, ctx.dilation)
    return q_grad, k_grad, weight_grad, bias_grad if ctx.needs_input_grad[3] else None, None


hadamard_conv_op.register_autograd(_backward, setup_context=_save)


# Formulas get the operator's arguments with shapes in the place of tensors.
@register_flop_formula(torch.ops.mixer_search.hadamard_conv)
def _flops(
    queries: tuple[int, ...],
    keys: object,
    weight: tuple[int, ...],
    *rest: object,
    out_shape: object,
) -> int:
    return 2 * prod(queries) * weight[0] * weight[2]


@register_flop_formula(torch.ops.mixer_search.hadamard_conv_grad)
def _grad_flops(
    grad: tuple[int, ...],
    queries: object,
    keys: object,
    weight: tuple[int, ...],
    *rest: object,
    out_shape: object,
) -> int:
    return 4 * prod(grad) * weight[0] * weight[2]
