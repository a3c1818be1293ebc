"""What the kernels of Triton's attention share: logits, weights and gradients of a tap.

Weights and their gradients follow from a few statistics of each pixel and head: of the softmax the
logarithm of its sum (a) and the mean response (b); of the filter norm the mean (a), the gain (b),
the mean response (c) and the slope (d).
"""

from __future__ import annotations

import triton
import triton.language as tl

# The places of the norms in `NORMS`.
SOFTMAX, FILTER_NORM, IDENTITY = (tl.constexpr(number) for number in range(3))


@triton.jit
def _table_row(
    table: tl.tensor,
    tap: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    block_depth: tl.constexpr,
    is_there: tl.constexpr,
) -> tl.tensor:
    """A head's part of a tap's row of a table (taps, C), or zeros."""
    row = tl.zeros((block_depth,), tl.float32)
    if is_there:
        lane = tl.arange(0, block_depth)
        place = table + (tap * heads + head) * depth + lane
        row += tl.load(place, mask=lane < depth, other=0.0).to(tl.float32)
    return row


@triton.jit
def tap_logit(
    query: tl.tensor,
    key: tl.tensor,
    qr: tl.tensor,
    rk: tl.tensor,
    bias: tl.tensor,
    tap: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    depth: tl.tensor,
    scale: tl.tensor,
    has_product: tl.constexpr,
    has_qr: tl.constexpr,
    has_rk: tl.constexpr,
    has_bias: tl.constexpr,
) -> tl.tensor:
    """The logits (pixels,) of a tap from queries and keys (pixels, D), and its tables' rows (D,).

    All three relative terms cost one product more than none of them:
    q.k + q.qr + k.rk = (q + rk).(k + qr) - rk.qr.
    """
    query_row = _table_row(qr, tap, head, heads, depth, query.shape[1], has_qr)
    key_row = _table_row(rk, tap, head, heads, depth, query.shape[1], has_rk)
    if has_product:
        left, right = query, key
        if has_rk:
            left += key_row[None, :]
        if has_qr:
            right += query_row[None, :]
        logit = tl.sum(left * right, 1)
        if has_qr and has_rk:
            logit -= tl.sum(query_row * key_row, 0)
    else:
        logit = tl.sum(query * query_row[None, :] + key * key_row[None, :], 1)
    logit *= scale
    if has_bias:
        logit += tl.load(bias + tap * heads + head).to(tl.float32)
    return logit, query_row, key_row


@triton.jit
def tap_weight(logit: tl.tensor, a: tl.tensor, b: tl.tensor, norm: tl.constexpr) -> tl.tensor:
    """The weight of a logit, by the statistics of its pixel and head."""
    if norm == SOFTMAX:
        logit = tl.exp(logit - a)
    elif norm == FILTER_NORM:
        logit = (logit - a) * b
    return logit


@triton.jit
def logit_grad(
    weight: tl.tensor,
    response: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    norm: tl.constexpr,
) -> tl.tensor:
    """The gradient of a logit from that of its weight, the response g.v."""
    if norm == SOFTMAX:
        response = weight * (response - b)
    elif norm == FILTER_NORM:
        response = b * (response - c) - weight * d
    return response


@triton.jit
def store_statistics(
    statistics: tl.tensor,
    before: tl.tensor,
    pixel: tl.tensor,
    mask: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    d: tl.tensor,
    norm: tl.constexpr,
) -> None:
    """Write what `load_statistics` reads."""
    if norm == SOFTMAX:
        place = statistics + (before * heads + pixel * heads + head) * 2
    else:
        place = statistics + (before * heads + pixel * heads + head) * 4
        tl.store(place + 2, c, mask=mask)
        tl.store(place + 3, d, mask=mask)
    tl.store(place, a, mask=mask)
    tl.store(place + 1, b, mask=mask)


@triton.jit
def load_statistics(
    statistics: tl.tensor,
    before: tl.tensor,
    pixel: tl.tensor,
    mask: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    norm: tl.constexpr,
) -> tl.tensor:
    """Read a, b, c and d of pixels (pixels,), zero where the norm has none or masked out."""
    a = tl.zeros(pixel.shape, tl.float32)
    b, c, d = a, a, a
    if norm == SOFTMAX:
        place = statistics + (before * heads + pixel * heads + head) * 2
        a = tl.load(place, mask=mask, other=0.0)
        b = tl.load(place + 1, mask=mask, other=0.0)
    elif norm == FILTER_NORM:
        place = statistics + (before * heads + pixel * heads + head) * 4
        a = tl.load(place, mask=mask, other=0.0)
        b = tl.load(place + 1, mask=mask, other=0.0)
        c = tl.load(place + 2, mask=mask, other=0.0)
        d = tl.load(place + 3, mask=mask, other=0.0)
    return a, b, c, d


@triton.jit
def filter_std(spread: tl.tensor, kernel_size: tl.constexpr) -> tl.tensor:
    """The unbiased deviation, from the sum of squared distances to the mean; of one tap zero."""
    return tl.sqrt(spread / max(kernel_size * kernel_size - 1, 1))


@triton.jit
def filter_gain(spread: tl.tensor, kernel_size: tl.constexpr) -> tl.tensor:
    """What filter normalisation multiplies centred logits with: sqrt(2) / K over the deviation."""
    return 1.4142135623730951 / kernel_size / (filter_std(spread, kernel_size) + 1e-10)
