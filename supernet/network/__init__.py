"""Blocks, stems and heads, the supernet, and extraction."""

from supernet.mixers import MIXERS, BatchNorm, CentredBatchNorm
from supernet.network.blocks import LocalConv, SqueezeExcite
from supernet.network.interpolation import interpolated_start
from supernet.network.macro import ClassBlock, PatchConv, PatchMerging, PositionEncoding
from supernet.network.supernet import (
    Supernet,
    build_block,
    build_subnet,
    check_shareable,
    extract,
    extraction_error,
)

# What they do depends on the size of the map, which a symbolic trace does not know: torch.fx takes
# them as they are.
OPAQUE = (
    *dict.fromkeys(MIXERS.values()),
    *(BatchNorm, CentredBatchNorm, LocalConv, SqueezeExcite),
    *(ClassBlock, PatchConv, PatchMerging, PositionEncoding),
)

__all__ = [
    "OPAQUE",
    "Supernet",
    "build_block",
    "build_subnet",
    "check_shareable",
    "extract",
    "extraction_error",
    "interpolated_start",
]
