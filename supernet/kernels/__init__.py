"""Neighbourhood operators on channels-last maps: what the local token mixers are made of."""

from __future__ import annotations

from supernet.kernels.aggregation.neighborhood import (
    aggregate,
    depthwise_conv,
    neighborhood_logits,
    skew,
)
from supernet.kernels.attention.area import Area
from supernet.kernels.attention.attention import neighborhood_attention
from supernet.kernels.hadamard.hadamard import hadamard_conv
from supernet.kernels.outlook.outlook import outlook_aggregate

__all__ = [
    "Area",
    "aggregate",
    "depthwise_conv",
    "hadamard_conv",
    "neighborhood_attention",
    "neighborhood_logits",
    "outlook_aggregate",
    "skew",
]
