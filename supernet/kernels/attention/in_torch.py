"""Neighbourhood attention from the primitives: any device and dtype; stores (B, H, W, heads, K*K).

Low precision is kept in the operands only: logits and weights are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.kernels.aggregation import in_torch as primitives
from supernet.kernels.attention.area import Area, Grads, Operands
from supernet.kernels.attention.normalisation import normalise, normalise_grad


def attention(operands: Operands, area: Area) -> Tensor:
    """Compute ``y_i = sum_o norm_o(s[i, o]) v_{i+o}`` with the logits

    ``s[i, o] = scale * (product q_i.k_{i+o} + q_i.qr_o + k_{i+o}.rk_o) + bias_o``.
    """
    values = operands[2]
    weights = normalise(_logits(operands, area), area.norm)
    taps = area.kernel_size, area.dilation
    return primitives.aggregate(weights.to(values.dtype), values, *taps, None, None, False)


def attention_grad(grad: Tensor, operands: Operands, area: Area) -> Grads:
    """Compute the gradients of the operands from that of y; the weights are computed again."""
    q, k, v, qr, rk, bias = operands
    taps = area.kernel_size, area.dilation
    logits = _logits(operands, area)
    weights = normalise(logits, area.norm)
    low = weights.to(v.dtype)
    dv = primitives.aggregate(low, grad, *taps, None, None, True)
    exact = grad.to(logits.dtype), v.to(logits.dtype)
    ds = primitives.logits(*exact, area.num_heads, *taps, None)
    ds = normalise_grad(ds, weights, logits, area.norm)
    dbias = None if bias is None else ds.sum((0, 1, 2)).t().to(bias.dtype)
    ds = (ds * area.scale).to(v.dtype)
    dq, dk, dqr, drk = None, None, None, None
    if q is not None:
        partner = k if area.has_product else None
        dq, dqr = _side(ds, partner, q, qr, area, transposed=False)
    if k is not None:
        partner = q if area.has_product else None
        dk, drk = _side(ds, partner, k, rk, area, transposed=True)
    return dq, dk, dv, dqr, drk, dbias


def _side(
    ds: Tensor,
    partner: Tensor | None,
    mine: Tensor,
    table: Tensor | None,
    area: Area,
    *,
    transposed: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of queries (transposed: of keys) and of their table."""
    taps = area.kernel_size, area.dilation
    total: Tensor | None = None
    if partner is not None:
        total = primitives.aggregate(ds, partner, *taps, None, None, transposed)
    if table is None:
        assert total is not None
        return total, None
    if transposed:
        ds = primitives.skew(ds, *taps, True)
    heads = (area.num_heads, -1)
    response = torch.einsum("bhwnt,tnd->bhwnd", ds, table.unflatten(-1, heads)).flatten(-2)
    found = torch.einsum("bhwnt,bhwnd->tnd", ds, mine.unflatten(-1, heads)).flatten(-2)
    return response if total is None else total + response, found


def _logits(operands: Operands, area: Area) -> Tensor:
    v = operands[2]
    dtype = torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    # Before they are scaled, logits may be larger than any number of float16.
    exact = (None if x is None else x.to(dtype) for x in (*operands[:2], *operands[3:]))
    q, k, qr, rk, bias = exact
    taps, heads = (area.kernel_size, area.dilation), (area.num_heads, -1)
    dots: list[Tensor] = []
    if area.has_product:
        assert q is not None
        assert k is not None
        dots.append(primitives.logits(q, k, area.num_heads, *taps, None))
    if q is not None and qr is not None:
        dots.append(_dot(q, qr, heads))
    if k is not None and rk is not None:
        dots.append(primitives.skew(_dot(k, rk, heads), *taps, False))
    parts = [x * area.scale for x in dots]
    if bias is not None:
        parts.append(bias.t().expand(*v.shape[:3], -1, -1))
    return sum(parts[1:], start=parts[0])


def _dot(x: Tensor, table: Tensor, heads: tuple[int, int]) -> Tensor:
    """Multiply tokens (B, H, W, N * D) with each tap's vector (taps, N * D), head by head."""
    return torch.einsum("bhwnd,tnd->bhwnt", x.unflatten(-1, heads), table.unflatten(-1, heads))
