"""The convolution of Hadamard logits as its definition says, differentiated by autograd."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from supernet.kernels.aggregation.naive import neighbors


def hadamard_conv_naive(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> Tensor:
    """Convolve the product of queries and keys in groups; shapes as in `hadamard_conv`."""
    taps, _, width = weight.shape
    around = neighbors(queries * keys, isqrt(taps), dilation)  # (B, H, W, C, K*K)
    inputs = around.unflatten(3, (-1, width))  # (B, H, W, groups, width, K*K)
    y = torch.einsum("bhwgjt,tgcj->bhwgc", inputs, weight.unflatten(1, (-1, width))).flatten(3)
    return y if bias is None else y + bias
