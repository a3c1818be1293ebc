"""The public neighbourhood operators: checked at the door, then computed as `select` decides.

Maps are channels-last, (B, H, W, C). Offset o = kh * K + kw reads the pixel at
(h + (kh - K // 2) * dilation, w + (kw - K // 2) * dilation), zero outside the map: an even K
reaches one tap further up and left than down and right. Group (or head) g owns the contiguous
channels g * C/G to (g + 1) * C/G. Operands share one dtype and device; under autocast they are cast
to its dtype. Nothing of size B*H*W*C*K*K is stored, except by ``MIXER_KERNELS=naive``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from supernet.kernels.aggregation.naive import (
    aggregate_naive,
    depthwise_conv_naive,
    neighborhood_logits_naive,
    skew_naive,
)
from supernet.kernels.aggregation.operators import aggregate_op, logits_op, skew_op
from supernet.kernels.operands import (
    alike,
    check,
    check_area,
    check_divides,
    check_map,
    check_taps,
)
from supernet.kernels.select import depthwise_formulation, formulation


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

    With a multiplier for each image it is the decoupled dynamic filter (Zhou et al. 2021, eq. 3).

    Args:
        filters: Shape (B, H, W, G, K*K).
        values: Shape (B, H, W, C), C divisible by G.
        kernel_size: K, odd or even.
        multiplier: Shape (K*K, C), or (B, K*K, C) for one of each image, or None for ones.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, C).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_taps(filters, "filters", kernel_size)
    check_area(kernel_size, dilation)
    check_map(values, "values")
    check(
        filters.shape[:3] == values.shape[:3],
        "The filters and values must be maps of one (B, H, W)",
        filters,
        values,
    )
    check_divides(filters.shape[3], values, "values")
    filters, values = alike(filters, values)
    if multiplier is not None:
        wanted = (kernel_size**2, values.shape[-1])
        # Compared with a shape of its own length: sizes that a trace leaves open stay open.
        found = (values.shape[0], *wanted) if multiplier.dim() == 3 else wanted
        if multiplier.shape != found:
            raise ValueError(
                f"The multiplier must have shape (K*K, C) = {wanted}, or B of them, got "
                f"{tuple(multiplier.shape)}. Slice it to the kernel size in use."
            )
        values, multiplier = alike(values, multiplier)
    if formulation(values) == "naive":
        return aggregate_naive(filters, values, kernel_size, multiplier, dilation=dilation)
    return aggregate_op(filters, values, kernel_size, dilation, multiplier, None, False)


def neighborhood_logits(
    queries: Tensor, keys: Tensor, num_heads: int, kernel_size: int, *, dilation: int = 1
) -> Tensor:
    """Multiply every query with the keys of its neighbours, head by head, without a scale.

    ``s[i, h, o] = sum over the channels c of head h of queries[i, c] * keys[i + o, c]``

    Args:
        queries: Shape (B, H, W, C).
        keys: Shape (B, H, W, C).
        num_heads: Divides C.
        kernel_size: K, odd or even.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, num_heads, K*K), zero for offsets outside the map.

    Raises:
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_area(kernel_size, dilation)
    check_map(queries, "queries")
    check(queries.shape == keys.shape, "Queries and keys must have one shape", queries, keys)
    check_divides(num_heads, queries, "queries")
    queries, keys = alike(queries, keys)
    if formulation(queries) == "naive":
        return neighborhood_logits_naive(queries, keys, num_heads, kernel_size, dilation=dilation)
    return logits_op(queries, keys, num_heads, kernel_size, dilation, None)


def skew(terms: Tensor, kernel_size: int, *, dilation: int = 1) -> Tensor:
    """Read each tap from the neighbour that it points to: ``s[i, g, o] = terms[i + o, g, o]``.

    Turns what every key offers to each relative position (r^q . k) into what a query sees.

    Args:
        terms: Shape (B, H, W, G, K*K).
        kernel_size: K, odd or even.
        dilation: Pixels from one tap to the next.

    Returns:
        The same shape, zero for offsets outside the map.

    Raises:
        ValueError: If the shape does not fit.
    """
    check_taps(terms, "terms", kernel_size)
    check_area(kernel_size, dilation)
    if formulation(terms) == "naive":
        return skew_naive(terms, kernel_size, dilation=dilation)
    return skew_op(terms, kernel_size, dilation, False)


def depthwise_conv(
    values: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> Tensor:
    """Convolve every channel with its own filter; zeros outside the map, whose size stays.

    Args:
        values: Shape (B, H, W, C).
        weight: Shape (C, K, K), or (B, C, K, K) for filters of each image.
        bias: Shape (C,), or None.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, C).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_map(values, "values")
    # A number also where torch.jit.trace makes sizes tensors.
    channels, size = values.shape[-1], int(weight.shape[-1]) if weight.dim() else 0
    wanted = (values.shape[0],) * (weight.dim() == 4) + (channels, size, size)
    check(
        weight.shape == wanted,
        "The weight must have shape (C, K, K) or (B, C, K, K) for values (B, H, W, C)",
        weight,
        values,
    )
    check_area(size, dilation)
    values, weight = alike(values, weight)
    if bias is not None:
        check(bias.shape == (channels,), "The bias must have shape (C,)", bias, values)
        values, bias = alike(values, bias)
    chosen = depthwise_formulation(values)
    if chosen == "naive":
        return depthwise_conv_naive(values, weight, bias, dilation=dilation)
    if chosen != "torch" or weight.dim() == 4:
        multiplier = weight.flatten(-2).transpose(-2, -1)
        return aggregate_op(None, values, size, dilation, multiplier, bias, False)
    return _conv2d(values, weight, bias, dilation)


def _conv2d(values: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    channels, size = values.shape[-1], weight.shape[-1]
    image = values.permute(0, 3, 1, 2)  # channels_last in memory
    border = size // 2 * dilation
    if size % 2 == 0:
        after = border - dilation
        image, border = F.pad(image, (border, after, border, after)), 0
    weight = weight.unsqueeze(1)
    # A pair: while torch 2.6 traces, a size is a tensor, and one alone is taken for an empty list.
    y = F.conv2d(image, weight, bias, padding=(border, border), dilation=dilation, groups=channels)
    return y.permute(0, 2, 3, 1).contiguous()
