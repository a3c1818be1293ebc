"""The neighbourhood operators as their definitions say, through `F.unfold` and `F.pad`.

The truth that the fast versions are tested against, on any device and in any dtype, differentiated
by autograd. They store every neighbour of every token: (B, H, W, C, K*K).

Maps are channels-last, (B, H, W, C). Offset o = kh * K + kw reads the pixel at
(h + kh - K // 2, w + kw - K // 2), zero outside the map. Group g owns the contiguous channels
g * C/G to (g + 1) * C/G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def aggregate_naive(
    filters: Tensor, values: Tensor, kernel_size: int, multiplier: Tensor | None = None
) -> Tensor:
    """Sum neighbours with position-dependent filters.

    Args:
        filters: Shape (B, H, W, G, K*K).
        values: Shape (B, H, W, C).
        kernel_size: K, odd.
        multiplier: Shape (C, K*K), multiplied with the filters of each channel; or None.

    Returns:
        Shape (B, H, W, C).
    """
    depth = values.shape[-1] // filters.shape[3]
    per_channel = filters.repeat_interleave(depth, 3)
    if multiplier is not None:
        per_channel = per_channel * multiplier
    return (per_channel * _neighbors(values, kernel_size)).sum(-1)


def neighborhood_logits_naive(
    queries: Tensor, keys: Tensor, num_heads: int, kernel_size: int
) -> Tensor:
    """Multiply each query with the keys of its neighbours, both (B, H, W, C), head by head.

    Returns:
        Shape (B, H, W, num_heads, K*K).
    """
    products = queries.unsqueeze(-1) * _neighbors(keys, kernel_size)
    depth = queries.shape[-1] // num_heads
    return products.reshape(*queries.shape[:3], num_heads, depth, kernel_size**2).sum(4)


def skew_naive(terms: Tensor, kernel_size: int) -> Tensor:
    """Read ``terms[i + o, g, o]`` for every pixel i and offset o; shape (B, H, W, G, K*K) stays."""
    height, width = terms.shape[1:3]
    half = kernel_size // 2
    padded = F.pad(terms, (0, 0, 0, 0, half, half, half, half))
    taps = [divmod(tap, kernel_size) for tap in range(kernel_size**2)]
    shifted = [
        padded[:, row : row + height, column : column + width, :, tap]
        for tap, (row, column) in enumerate(taps)
    ]
    return torch.stack(shifted, -1)


def depthwise_conv_naive(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve every channel of (B, H, W, C) with its own filter of ``weight`` (C, K, K)."""
    y = (weight.flatten(1) * _neighbors(values, weight.shape[-1])).sum(-1)
    return y if bias is None else y + bias


def _neighbors(values: Tensor, kernel_size: int) -> Tensor:
    """Gather the neighbours of every pixel: (B, H, W, C) -> (B, H, W, C, K*K)."""
    batch, height, width, channels = values.shape
    columns = F.unfold(values.permute(0, 3, 1, 2), kernel_size, padding=kernel_size // 2)
    return columns.view(batch, channels, kernel_size**2, height, width).permute(0, 3, 4, 1, 2)
