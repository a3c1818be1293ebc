"""The convolution of Hadamard logits in C: float32 and float64 on a CPU, narrow groups."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from supernet.kernels.hadamard.in_torch import Grads
from supernet.kernels.layout import dense, even_pixels
from supernet.kernels.library import call, load


def serves(weight: Tensor) -> bool:
    """Tell whether the groups are a power of two of channels that fits a vector."""
    width, library = weight.shape[2], load(weight.dtype)
    fits = library is not None and width <= library.neighborhood_hadamard_widest()
    return fits and width & (width - 1) == 0


def hadamard_conv(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None, dilation: int
) -> Tensor:
    """Convolve the product, made row by row."""
    queries, keys = even_pixels(queries), even_pixels(keys)
    result = torch.empty(queries.shape, dtype=queries.dtype)
    tensors = (result, queries, keys, weight.contiguous(), dense(bias))
    call("neighborhood_hadamard", tensors, _sizes(queries, keys, weight, dilation))
    return result


def hadamard_conv_grad(
    grad: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, dilation: int
) -> Grads:
    """Compute the gradients of queries, keys, weight and bias; the product is computed again."""
    queries, keys = even_pixels(queries), even_pixels(keys)
    shapes = (grad.shape, grad.shape, weight.shape, grad.shape[-1:])
    results = tuple(torch.empty(shape, dtype=grad.dtype) for shape in shapes)
    tensors = (*results, grad.contiguous(), queries, keys, weight.contiguous())
    call("neighborhood_hadamard_grad", tensors, _sizes(queries, keys, weight, dilation))
    return results[0], results[1], results[2], results[3]


def _sizes(queries: Tensor, keys: Tensor, weight: Tensor, dilation: int) -> tuple[int, ...]:
    size, pitches = isqrt(weight.shape[0]), (queries.stride(2), keys.stride(2))
    return (*pitches, weight.shape[2], *queries.shape, size, dilation)
