"""Neighbourhood operators on channels-last maps, of which the local token mixers are made.

And AdamW's step on parts of weights, which a supernet takes.
"""

from __future__ import annotations

from supernet.kernels.adamw.adamw import update_parts
from supernet.kernels.adamw.part import Part, Rule
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
    "Part",
    "Rule",
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
    "update_parts",
]
