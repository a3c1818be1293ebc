"""The primitives in C: float32 and float64 on a CPU.

Signatures and conventions are those of `supernet.kernels.aggregation.in_torch`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.kernels.layout import dense
from supernet.kernels.library import call


def aggregate(
    filters: Tensor | None,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """Compute ``y[i] = sum_o f[i, o] v[i + o]``, or transposed ``sum_o f[i - o, o] v[i - o]``."""
    values = values.contiguous()
    result = torch.empty(values.shape, dtype=values.dtype)
    groups = 1 if filters is None else filters.shape[3]
    tensors = (result, dense(filters), values, dense(multiplier), dense(bias))
    sizes = (*values.shape, groups, kernel_size, dilation)
    call("neighborhood_aggregate", tensors, (_per_image(multiplier), transposed, *sizes))
    return result


def logits(
    x: Tensor,
    values: Tensor,
    groups: int,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
) -> Tensor:
    """Compute ``s[i, g, o] = sum over c in g of multiplier[o, c] x[i, c] values[i + o, c]``."""
    x, values = x.contiguous(), values.contiguous()
    result = torch.empty((*x.shape[:3], groups, kernel_size**2), dtype=x.dtype)
    sizes = (_per_image(multiplier), *x.shape, groups, kernel_size, dilation)
    call("neighborhood_logits", (result, x, values, dense(multiplier)), sizes)
    return result


def multiplier_grad(
    filters: Tensor | None,
    x: Tensor,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    per_image: bool,
) -> Tensor:
    """Compute ``m[o, c] = sum_i filters[i, g(c), o] x[i, c] values[i + o, c]``, (K*K, C).

    With ``per_image`` the sum is over the pixels of each image: (B, K*K, C).
    """
    x, values = x.contiguous(), values.contiguous()
    images = x.shape[:1] if per_image else ()
    result = torch.empty((*images, kernel_size**2, x.shape[-1]), dtype=x.dtype)
    groups = 1 if filters is None else filters.shape[3]
    sizes = (per_image, *x.shape, groups, kernel_size, dilation)
    call("neighborhood_multiplier_grad", (result, dense(filters), x, values), sizes)
    return result


def depthwise_grad(
    grad: Tensor, values: Tensor, kernel_size: int, dilation: int, multiplier: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of a depth-wise convolution's values, multiplier and bias at once."""
    grad, values, multiplier = grad.contiguous(), values.contiguous(), multiplier.contiguous()
    shapes = values.shape, multiplier.shape, values.shape[-1:]
    results = tuple(torch.empty(shape, dtype=values.dtype) for shape in shapes)
    sizes = (_per_image(multiplier), *grad.shape, kernel_size, dilation)
    call("neighborhood_depthwise_grad", (*results, grad, values, multiplier), sizes)
    return results[0], results[1], results[2]


def skew(terms: Tensor, kernel_size: int, dilation: int, transposed: bool) -> Tensor:
    """Compute ``s[i, g, o] = terms[i + o, g, o]``, or its transpose ``terms[i - o, g, o]``."""
    terms = terms.contiguous()
    result = torch.empty(terms.shape, dtype=terms.dtype)
    sizes = (transposed, *terms.shape[:4], kernel_size, dilation)
    call("neighborhood_skew", (result, terms), sizes)
    return result


def _per_image(multiplier: Tensor | None) -> bool:
    return multiplier is not None and multiplier.dim() == 3
