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
from supernet.kernels.attention.normalisation import normalise
from supernet.kernels.hadamard.hadamard import hadamard_conv
from supernet.kernels.layout import split_channels
from supernet.kernels.outlook.outlook import outlook_aggregate
from supernet.kernels.select import (
    VARIABLE,
    compare_kernels,
    describe_selection,
    prefers_sdpa,
)

__all__ = [
    "VARIABLE",
    "Area",
    "aggregate",
    "compare_kernels",
    "depthwise_conv",
    "describe_selection",
    "hadamard_conv",
    "neighborhood_attention",
    "neighborhood_logits",
    "normalise",
    "outlook_aggregate",
    "prefers_sdpa",
    "skew",
    "split_channels",
]
