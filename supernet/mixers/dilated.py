"""`aggregate` and `depthwise_conv` for every area: dilated, even, and with factors of each image.

Offset o = kh * K + kw reads the pixel at (h + (kh - K // 2) * dilation, w + (kw - K // 2) *
dilation), zero outside the map: an even K reaches one tap further up and left. What
`supernet.kernels` can do goes there; the rest is plain torch, tap by tap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet import kernels


def aggregate(
    filters: Tensor,
    values: Tensor,
    kernel_size: int,
    multiplier: Tensor | None = None,
    *,
    dilation: int = 1,
) -> Tensor:
    """Sum the neighbours of every token with its own filters.

    ``y[i, c] = sum over o of multiplier[o, c] * filters[i, g(c), o] * values[i + o, c]``

    Args:
        filters: Shape (B, H, W, G, K*K).
        values: Shape (B, H, W, C), C divisible by G.
        kernel_size: K, odd or even.
        multiplier: Shape (K*K, C), or (B, K*K, C) for one of each image, or None for ones.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, C).
    """
    per_image = multiplier is not None and multiplier.dim() == 3
    if dilation == 1 and kernel_size % 2 and not per_image:
        per_channel = None if multiplier is None else multiplier.t().contiguous()
        return kernels.aggregate(filters, values.contiguous(), kernel_size, per_channel)
    if multiplier is not None and not per_image:
        multiplier = multiplier[None]
    height, width = values.shape[1:3]
    padded = pad_area(values, kernel_size, dilation=dilation, rows_axis=1)
    y = torch.zeros_like(values)
    for tap in range(kernel_size**2):
        row, column = (dilation * step for step in divmod(tap, kernel_size))
        shifted = padded[:, row : row + height, column : column + width]
        if multiplier is not None:
            shifted = shifted * multiplier[:, tap, None, None]
        grouped = shifted.unflatten(-1, (filters.shape[3], -1))
        y = y + (filters[..., tap, None] * grouped).flatten(-2)
    return y


def depthwise_conv(values: Tensor, weight: Tensor, *, dilation: int = 1) -> Tensor:
    """Convolve every channel with its own filter; the size of the map stays.

    Args:
        values: Shape (B, H, W, C).
        weight: Shape (C, K, K), or (B, C, K, K) for filters of each image.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, C).
    """
    size = weight.shape[-1]
    if weight.dim() == 3 and dilation == 1 and size % 2:
        return kernels.depthwise_conv(values.contiguous(), weight.contiguous())
    if weight.dim() == 3:
        image = pad_area(values.permute(0, 3, 1, 2), size, dilation=dilation, rows_axis=2)
        y = F.conv2d(image, weight[:, None], groups=len(weight), dilation=dilation)
        return y.permute(0, 2, 3, 1)
    ones = values.new_ones(()).expand(*values.shape[:3], 1, size**2)
    return aggregate(ones, values, size, weight.flatten(-2).transpose(-2, -1), dilation=dilation)


def pad_area(x: Tensor, kernel_size: int, *, dilation: int, rows_axis: int) -> Tensor:
    """Pad rows and columns (the axes ``rows_axis`` and the next) with the zeros that taps reach."""
    before = kernel_size // 2 * dilation
    after = (kernel_size - 1) * dilation - before
    behind = [0, 0] * (x.dim() - rows_axis - 2)
    return F.pad(x, (*behind, before, after, before, after))
