"""Neighbourhood operators on channels-last maps: what the local token mixers are made of."""

from __future__ import annotations

from supernet.kernels.area import Area
from supernet.kernels.attention import neighborhood_attention
from supernet.kernels.neighborhood import aggregate, depthwise_conv, neighborhood_logits, skew

__all__ = [
    "Area",
    "aggregate",
    "depthwise_conv",
    "neighborhood_attention",
    "neighborhood_logits",
    "skew",
]
