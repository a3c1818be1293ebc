"""The neighbourhood operators as their definitions say, through `F.unfold` and `F.pad`.

The truth that the fast versions are tested against, on any device and in any dtype, differentiated
by autograd. They store every neighbour of every token: (B, H, W, C, K*K).

Maps are channels-last, (B, H, W, C). Offset o = kh * K + kw reads the pixel at
(h + (kh - K // 2) * dilation, w + (kw - K // 2) * dilation), zero outside the map: an even K
reaches one tap further up and left than down and right. Group g owns the contiguous channels
g * C/G to (g + 1) * C/G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def aggregate_naive(
    filters: Tensor,
    values: Tensor,
    kernel_size: int,
    multiplier: Tensor | None = None,
    *,
    dilation: int = 1,
) -> Tensor:
    """Sum neighbours with position-dependent filters.

    Args:
        filters: Shape (B, H, W, G, K*K).
        values: Shape (B, H, W, C).
        kernel_size: K.
        multiplier: Shape (K*K, C) or (B, K*K, C), multiplied with the filters of each channel; or
            None.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, C).
    """
    depth = values.shape[-1] // filters.shape[3]
    per_channel = filters.repeat_interleave(depth, 3)
    if multiplier is not None:
        per_channel = per_channel * _every_pixel(multiplier)
    return (per_channel * neighbors(values, kernel_size, dilation)).sum(-1)


def neighborhood_logits_naive(
    queries: Tensor, keys: Tensor, num_heads: int, kernel_size: int, *, dilation: int = 1
) -> Tensor:
    """Multiply each query with the keys of its neighbours, both (B, H, W, C), head by head.

    Returns:
        Shape (B, H, W, num_heads, K*K).
    """
    products = queries.unsqueeze(-1) * neighbors(keys, kernel_size, dilation)
    depth = queries.shape[-1] // num_heads
    return products.reshape(*queries.shape[:3], num_heads, depth, kernel_size**2).sum(4)


def skew_naive(terms: Tensor, kernel_size: int, *, dilation: int = 1) -> Tensor:
    """Read ``terms[i + o, g, o]`` for every pixel i and offset o; shape (B, H, W, G, K*K) stays."""
    height, width = terms.shape[1:3]
    before, after = _borders(kernel_size, dilation)
    padded = F.pad(terms, (0, 0, 0, 0, before, after, before, after))
    starts = [dilation * position for position in range(kernel_size)]
    taps = [(row, column) for row in starts for column in starts]
    shifted = [
        padded[:, row : row + height, column : column + width, :, tap]
        for tap, (row, column) in enumerate(taps)
    ]
    return torch.stack(shifted, -1)


def depthwise_conv_naive(
    values: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> Tensor:
    """Convolve every channel of (B, H, W, C) with its own filter of ``weight``.

    The weight has shape (C, K, K), or (B, C, K, K) for filters of each image.
    """
    factors = _every_pixel(weight.flatten(-2).transpose(-2, -1))
    y = (factors * neighbors(values, int(weight.shape[-1]), dilation)).sum(-1)
    return y if bias is None else y + bias


def _every_pixel(multiplier: Tensor) -> Tensor:
    """View (K*K, C) or (B, K*K, C) as (B or 1, 1, 1, C, K*K)."""
    return multiplier.reshape(-1, *multiplier.shape[-2:]).transpose(1, 2)[:, None, None]


def neighbors(values: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Gather the neighbours of every pixel: (B, H, W, C) -> (B, H, W, C, K*K)."""
    batch, height, width, channels = values.shape
    before, after = _borders(kernel_size, dilation)
    padded = F.pad(values.permute(0, 3, 1, 2), (before, after, before, after))
    columns = F.unfold(padded, kernel_size, dilation=dilation)
    return columns.view(batch, channels, kernel_size**2, height, width).permute(0, 3, 4, 1, 2)


def _borders(kernel_size: int, dilation: int) -> tuple[int, int]:
    """Count the pixels that a kernel reaches before and after its own."""
    return kernel_size // 2 * dilation, (kernel_size - 1 - kernel_size // 2) * dilation
