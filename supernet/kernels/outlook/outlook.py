"""The public outlook aggregation: checked at the door, then computed as `select` decides."""

from __future__ import annotations

from torch import Tensor

from supernet.kernels.operands import alike, check_divides, check_map
from supernet.kernels.outlook.naive import outlook_aggregate_naive
from supernet.kernels.outlook.operators import outlook_aggregate_op
from supernet.kernels.select import formulation


def outlook_aggregate(weights: Tensor, values: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Make K x K outputs of the K x K values around every token; sum them where they overlap.

    Outlook attention (Yuan et al. 2021, https://arxiv.org/abs/2106.13112, Algorithm 1) without its
    projections and its softmax. Tokens t stand on every s-th pixel, from the first on; offset
    o = kh * K + kw is the pixel at (kh - K // 2, kw - K // 2) from the token's::

        y[s*t + o, c] = sum over t, u of weights[t, h(c), o, u] * values[s*t + u, c]

    with zeros outside the map. Head h owns the contiguous channels h * C/N to (h + 1) * C/N. A
    pixel that no token reaches, where s > K, is zero.

    Args:
        weights: Shape (B, ceil(H/s), ceil(W/s), N, K*K outputs, K*K values).
        values: Shape (B, H, W, C), C divisible by N.
        kernel_size: K, odd or even.
        stride: s, pixels from one token to the next.

    Returns:
        Shape (B, H, W, C).

    Raises:
        ValueError: If shapes, dtypes or devices do not fit.
    """
    check_map(values, "values")
    if kernel_size < 1 or stride < 1:
        raise ValueError(
            f"The kernel size and the stride must be at least 1, got {kernel_size} and {stride}."
        )
    batch, height, width, _ = values.shape
    heads, taps = weights.shape[3] if weights.dim() == 6 else 0, kernel_size**2
    rows, columns = ((size + stride - 1) // stride for size in (height, width))
    wanted = (batch, rows, columns, max(heads, 1), taps, taps)
    if weights.shape != wanted:
        raise ValueError(
            f"The weights must have shape (B, ceil(H/s), ceil(W/s), N, K*K, K*K) = {wanted} for "
            f"values {tuple(values.shape)}, K = {kernel_size} and s = {stride}, got "
            f"{tuple(weights.shape)}. Generate them on the map pooled with this stride."
        )
    check_divides(heads, values, "values")
    weights, values = alike(weights, values)
    if formulation(values) == "naive":
        return outlook_aggregate_naive(weights, values, kernel_size, stride)
    return outlook_aggregate_op(weights, values, kernel_size, stride, False)
