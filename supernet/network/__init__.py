"""Blocks, stems and heads, the supernet, and extraction."""

from supernet.network.interpolation import interpolated_start
from supernet.network.supernet import (
    Supernet,
    build_block,
    build_subnet,
    extract,
    extraction_error,
)

__all__ = [
    "Supernet",
    "build_block",
    "build_subnet",
    "extract",
    "extraction_error",
    "interpolated_start",
]
