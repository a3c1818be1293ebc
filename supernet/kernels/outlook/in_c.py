"""The primitives in C: float32 and float64 on a CPU.

Signatures and conventions are those of `supernet.kernels.outlook.in_torch`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.kernels.library import call


def aggregate(
    weights: Tensor, values: Tensor, kernel_size: int, stride: int, transposed: bool
) -> Tensor:
    """Compute ``y[t + o] = sum_{t,u} w[t, o, u] v[t + u]``, or transposed with ``w[t, u, o]``."""
    weights, values = weights.contiguous(), values.contiguous()
    result = torch.empty(values.shape, dtype=values.dtype)
    sizes = (transposed, *values.shape, weights.shape[3], kernel_size, stride)
    call("outlook_aggregate", (result, weights, values), sizes)
    return result


def products(x: Tensor, values: Tensor, heads: int, kernel_size: int, stride: int) -> Tensor:
    """Compute ``p[t, h, o, u] = sum over c in h of x[t + o, c] values[t + u, c]``."""
    x, values = x.contiguous(), values.contiguous()
    tokens = (-(-size // stride) for size in x.shape[1:3])
    shape = (x.shape[0], *tokens, heads, kernel_size**2, kernel_size**2)
    result = torch.empty(shape, dtype=x.dtype)
    call("outlook_products", (result, x, values), (*x.shape, heads, kernel_size, stride))
    return result
