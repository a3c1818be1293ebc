"""The primitives in plain torch, as matrix products of every token: any device and dtype.

They serve where C and Triton cannot: without a compiler, on other devices, in half precision on a
CPU (sums are kept in float32). Both are derivatives of the form

    sum over t, o, u, c of  weights[t, h(c), o, u] * x[s*t + o, c] * values[s*t + u, c]

and store the K x K pixels around every token, K*K / (s*s) times a map; conventions as in
`supernet.kernels.outlook.naive`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from supernet.kernels.outlook.naive import map_borders


def aggregate(
    weights: Tensor, values: Tensor, kernel_size: int, stride: int, transposed: bool
) -> Tensor:
    """Compute ``y[t + o] = sum_{t,u} w[t, o, u] v[t + u]``, or transposed with ``w[t, u, o]``."""
    around = _surroundings(values, weights.shape[3], kernel_size, stride)
    matrix = (weights.mT if transposed else weights).to(around.dtype)
    return _sum_overlaps(matrix @ around, values, kernel_size, stride)


def products(x: Tensor, values: Tensor, heads: int, kernel_size: int, stride: int) -> Tensor:
    """Compute ``p[t, h, o, u] = sum over c in h of x[t + o, c] values[t + u, c]``."""
    mine, theirs = (_surroundings(map_, heads, kernel_size, stride) for map_ in (x, values))
    return (mine @ theirs.mT).to(x.dtype)


def _surroundings(map_: Tensor, heads: int, kernel_size: int, stride: int) -> Tensor:
    """Gather the pixels around every token: (B, ceil(H/s), ceil(W/s), N, K*K, C/N)."""
    padded = F.pad(map_, (0, 0, *map_borders(map_, kernel_size, stride)))
    if map_.dtype in (torch.float16, torch.bfloat16):
        padded = padded.float()
    windows = padded.unfold(1, kernel_size, stride).unfold(2, kernel_size, stride)
    return windows.unflatten(3, (heads, -1)).permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)


def _sum_overlaps(outputs: Tensor, like: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Add the outputs of every token (B, ceil(H/s), ceil(W/s), N, K*K, C/N) into a map."""
    _, rows, columns = outputs.shape[:3]
    borders = map_borders(like, kernel_size, stride)
    sides = ((count - 1) * stride + kernel_size for count in (rows, columns))
    sums = outputs.new_zeros(like.shape[0], *sides, like.shape[3])
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        covered = sums[:, row::stride, column::stride][:, :rows, :columns]
        covered += outputs[..., tap, :].flatten(3)
    cropped = F.pad(sums, (0, 0, *(-border for border in borders)))
    return cropped.to(like.dtype)
