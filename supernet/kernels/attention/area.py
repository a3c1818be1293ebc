"""What neighbourhood attention is asked to compute: the area, the terms and the normalisation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

NORMS = ("softmax", "filter_norm", "identity")


class Area(NamedTuple):
    """The settings of `supernet.kernels.attention.neighborhood_attention`.

    A tuple, so that it can be handed to operators that know only numbers and strings.
    """

    num_heads: int
    kernel_size: int
    dilation: int
    scale: float
    has_product: bool
    norm: str


# Queries, keys, values (B, H, W, C), tables of queries and of keys (K*K, C), bias (K*K, num_heads);
# all but the values may be missing.
Operands = tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor | None, Tensor | None]
Grads = tuple[Tensor | None, ...]
