"""The primitives in plain torch, tap by tap: any device, any dtype, nothing of size N*K*K*C.

They serve where C and Triton cannot: without a compiler, on other devices, in half precision on a
CPU (sums are kept in float32). Three of them compute one derivative of the form

    sum over i, o, c of  multiplier[o, c] * filters[i, g(c), o] * x[i, c] * values[i + o, c]

and `skew` moves the taps; conventions as in `supernet.kernels.aggregation.naive`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Slices = tuple[slice, slice, slice]


def aggregate(
    filters: Tensor | None,
    values: Tensor,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    """Compute ``y[i] = sum_o f[i, o] v[i + o]``, or transposed ``sum_o f[i - o, o] v[i - o]``.

    The filter f is filters * multiplier, with either left out; the bias (C,) is added.
    """
    groups = 1 if filters is None else filters.shape[3]
    split = _split(values, groups)
    factors = _factors(multiplier, groups)
    sums = torch.zeros(split.shape, dtype=_sum_dtype(values), device=values.device)
    for tap, here, there in _taps(values, kernel_size, dilation):
        source, target = (here, there) if transposed else (there, here)
        terms = split[source]
        if factors is not None:
            terms = terms * factors[:, tap]
        if filters is None:
            sums[target].add_(terms)
        else:
            sums[target].addcmul_(filters[here][..., tap, None], terms)
    y = sums.flatten(-2)
    if bias is not None:
        y += bias
    return y.to(values.dtype)


def logits(
    x: Tensor,
    values: Tensor,
    groups: int,
    kernel_size: int,
    dilation: int,
    multiplier: Tensor | None,
) -> Tensor:
    """Compute ``s[i, g, o] = sum over c in g of multiplier[o, c] x[i, c] values[i + o, c]``."""
    mine, theirs = _split(x, groups), _split(values, groups)
    factors = _factors(multiplier, groups)
    result = x.new_zeros(*x.shape[:3], groups, kernel_size**2)
    for tap, here, there in _taps(x, kernel_size, dilation):
        products = mine[here] * theirs[there]
        if factors is not None:
            products *= factors[:, tap]
        result[here][..., tap] = products.sum(-1, dtype=_sum_dtype(x))
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
    groups = 1 if filters is None else filters.shape[3]
    mine, theirs = _split(x, groups), _split(values, groups)
    result = x.new_zeros(*x.shape[: int(per_image)], kernel_size**2, x.shape[-1])
    for tap, here, there in _taps(x, kernel_size, dilation):
        products = mine[here] * theirs[there]
        if filters is not None:
            products *= filters[here][..., tap, None]
        axes = (1, 2) if per_image else (0, 1, 2)
        result[..., tap, :] = products.sum(axes, dtype=_sum_dtype(x)).flatten(-2)
    return result


def skew(terms: Tensor, kernel_size: int, dilation: int, transposed: bool) -> Tensor:
    """Compute ``s[i, g, o] = terms[i + o, g, o]``, or its transpose ``terms[i - o, g, o]``."""
    result = torch.zeros_like(terms, memory_format=torch.contiguous_format)
    for tap, here, there in _taps(terms, kernel_size, dilation):
        source, target = (here, there) if transposed else (there, here)
        result[target][..., tap] = terms[source][..., tap]
    return result


def _split(map_: Tensor, groups: int) -> Tensor:
    """View (B, H, W, C) as (B, H, W, G, C/G)."""
    return map_.reshape(*map_.shape[:3], groups, map_.shape[3] // groups)


def _factors(multiplier: Tensor | None, groups: int) -> Tensor | None:
    """View (K*K, C) or (B, K*K, C) as (B or 1, K*K, 1, 1, G, C/G): tap by tap it fits a map."""
    if multiplier is None:
        return None
    taps, channels = multiplier.shape[-2:]
    images = multiplier.shape[0] if multiplier.dim() == 3 else 1
    return multiplier.reshape(images, taps, 1, 1, groups, channels // groups)


def _taps(map_: Tensor, kernel_size: int, dilation: int) -> Iterator[tuple[int, Slices, Slices]]:
    """Yield each tap that meets the map, the pixels that it serves and those that it reads."""
    height, width = map_.shape[1:3]
    half = kernel_size // 2
    for tap in range(kernel_size**2):
        row, column = divmod(tap, kernel_size)
        down, right = (row - half) * dilation, (column - half) * dilation
        if abs(down) < height and abs(right) < width:
            rows, columns = _overlap(height, down), _overlap(width, right)
            yield tap, (slice(None), rows[0], columns[0]), (slice(None), rows[1], columns[1])


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Return the positions p with p and p + shift inside, and those p + shift."""
    first, last = max(0, -shift), size - max(0, shift)
    return slice(first, last), slice(first + shift, last + shift)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
