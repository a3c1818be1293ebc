"""Neighbourhood attention as its definition says, differentiated by autograd: the truth."""

from __future__ import annotations

from torch import Tensor

from supernet.kernels.aggregation.naive import neighbors
from supernet.kernels.attention.area import Area, Operands
from supernet.kernels.attention.normalisation import normalise


def neighborhood_attention_naive(operands: Operands, area: Area) -> Tensor:
    """Attend to neighbours, with all of them gathered: (B, H, W, C, K*K) several times.

    Zhou et al. 2023, Eq. 4 with the sliding area; `supernet.kernels.attention` has the formula.
    """
    q, k, v, qr, rk, bias = operands
    heads = (area.num_heads, -1)
    batch, height, width, _ = v.shape

    def gather(x: Tensor) -> Tensor:
        return neighbors(x, area.kernel_size, area.dilation).unflatten(3, heads)

    def per_channel(table: Tensor) -> Tensor:
        return table.t().unflatten(0, heads)  # (N, D, K*K)

    dots = v.new_zeros(batch, height, width, area.num_heads, area.kernel_size**2)
    if area.has_product and q is not None and k is not None:
        dots = dots + (q.unflatten(3, heads).unsqueeze(-1) * gather(k)).sum(4)
    if q is not None and qr is not None:
        dots = dots + (q.unflatten(3, heads).unsqueeze(-1) * per_channel(qr)).sum(4)
    if k is not None and rk is not None:
        dots = dots + (gather(k) * per_channel(rk)).sum(4)
    logits = area.scale * dots
    if bias is not None:
        logits = logits + bias.t()
    weights = normalise(logits, area.norm)
    return (weights.unsqueeze(4) * gather(v)).sum(-1).flatten(3)
