"""The public convolution of Hadamard logits: checked at the door, then computed by `select`."""

from __future__ import annotations

from math import isqrt

from torch import Tensor

from supernet.kernels.hadamard.naive import hadamard_conv_naive
from supernet.kernels.hadamard.operator import hadamard_conv_op
from supernet.kernels.operands import alike, check, check_area, check_map
from supernet.kernels.select import formulation


def hadamard_conv(
    queries: Tensor, keys: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1
) -> Tensor:
    """Convolve the Hadamard product of queries and keys in groups of channels.

    ``y[i, c] = bias[c] + sum over o, j of weight[o, c, j] * (queries * keys)[i + o, first(c) + j]``

    where ``first(c) = c // width * width``: what ELSA's logits are made of, before their activation
    and the linear layer over channels (Zhou et al. 2023, eq. 7; the published generator). Offsets
    are those of `aggregate`.

    Args:
        queries: Shape (B, H, W, C).
        keys: Shape (B, H, W, C).
        weight: Shape (K*K, C, width), the width of a group dividing C.
        bias: Shape (C,), or None.
        dilation: Pixels from one tap to the next.

    Returns:
        Shape (B, H, W, C).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_map(queries, "queries")
    check(queries.shape == keys.shape, "Queries and keys must have one shape", queries, keys)
    channels, width = queries.shape[-1], weight.shape[-1] if weight.dim() == 3 else 0
    size = isqrt(weight.shape[0]) if weight.dim() == 3 else 0
    if not width or channels % width or weight.shape != (size**2, channels, width):
        raise ValueError(
            "The weight must have shape (K*K, C, width), the width dividing C, for queries "
            f"(B, H, W, C), got {tuple(weight.shape)} and {tuple(queries.shape)}."
        )
    check_area(size, dilation)
    queries, keys = alike(queries, keys)
    queries, weight = alike(queries, weight)
    if bias is not None:
        check(bias.shape == (channels,), "The bias must have shape (C,)", bias, queries)
        queries, bias = alike(queries, bias)
    if formulation(queries) == "naive":
        return hadamard_conv_naive(queries, keys, weight, bias, dilation=dilation)
    return hadamard_conv_op(queries, keys, weight, bias, dilation)
