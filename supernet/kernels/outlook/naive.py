"""Outlook aggregation as its definition says, through `F.unfold` and `F.fold`: the truth.

Maps are channels-last, (B, H, W, C). Tokens t stand on the pixels s * t of a map, ceil(H / s) x
ceil(W / s) of them for stride s. Offset o = kh * K + kw of a token is the pixel at
(s * th + kh - K // 2, s * tw + kw - K // 2), zero outside the map. Head h owns the contiguous
channels h * C/N to (h + 1) * C/N.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def outlook_aggregate_naive(
    weights: Tensor, values: Tensor, kernel_size: int, stride: int
) -> Tensor:
    """Make K x K outputs of the K x K values around every token; sum where they overlap.

    Args:
        weights: Shape (B, ceil(H/s), ceil(W/s), N, K*K outputs, K*K values).
        values: Shape (B, H, W, C).
        kernel_size: K.
        stride: s, pixels from one token to the next.

    Returns:
        Shape (B, H, W, C).
    """
    borders = map_borders(values, kernel_size, stride)
    padded = F.pad(values.permute(0, 3, 1, 2), borders)
    columns = F.unfold(padded, kernel_size, stride=stride)  # (B, C*K*K, tokens)
    columns = columns.unflatten(1, (weights.shape[3], -1, kernel_size**2)).permute(0, 1, 4, 3, 2)
    outputs = weights.flatten(1, 2).transpose(1, 2) @ columns  # (B, N, tokens, K*K, C/N)
    outputs = outputs.permute(0, 1, 4, 3, 2).flatten(1, 3)
    # Numbers also where torch.jit.trace makes sizes tensors.
    size = (int(padded.shape[2]), int(padded.shape[3]))
    sums = F.fold(outputs, size, kernel_size, stride=stride)
    return F.pad(sums, [-border for border in borders]).permute(0, 2, 3, 1)


def map_borders(values: Tensor, kernel_size: int, stride: int) -> list[int]:
    """Count the pixels by which all tokens reach beyond a map: left, right, above, below.

    Less than none where no token reaches the map's last pixels.
    """
    height, width = values.shape[1:3]
    before = kernel_size // 2
    right, below = (
        ((size - 1) // stride) * stride + kernel_size - size - before for size in (width, height)
    )
    return [before, right, before, below]
