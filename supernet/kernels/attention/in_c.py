"""Neighbourhood attention in C, in one pass: float32 and float64 on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from supernet.kernels.attention.area import NORMS, Area, Grads, Operands
from supernet.kernels.layout import dense, empty_slices, even_pixels
from supernet.kernels.library import call


def attention(operands: Operands, area: Area) -> Tensor:
    """Compute `supernet.kernels.attention.in_torch.attention` in one pass."""
    packed, rule = _lay_out(operands, area)
    values = operands[2]
    result = torch.empty(values.shape, dtype=values.dtype)
    call("neighborhood_attention", (result, *packed), (*rule, *values.shape, *area[:3]))
    return result


def attention_grad(grad: Tensor, operands: Operands, area: Area) -> Grads:
    """Compute the gradients of the operands; the weights are computed again."""
    packed, rule = _lay_out(operands, area)
    results = (
        *empty_slices(grad, operands[:3]),
        *(None if x is None else torch.empty(x.shape, dtype=x.dtype) for x in operands[3:]),
    )
    sizes = (results[2].stride(2), *rule, *grad.shape, *area[:3])
    call("neighborhood_attention_grad", (*results, grad.contiguous(), *packed), sizes)
    return results


def _lay_out(operands: Operands, area: Area) -> tuple[tuple[Tensor | None, ...], tuple[float, ...]]:
    """Bring the operands into memory as C wants them; return the maps' pitches and the rule too."""
    maps = [None if x is None else even_pixels(x) for x in operands[:3]]
    pitches = [0 if x is None else x.stride(2) for x in maps]
    rule = (*pitches, area.scale, area.has_product, NORMS.index(area.norm))
    return (*maps, *(dense(x) for x in operands[3:])), rule
