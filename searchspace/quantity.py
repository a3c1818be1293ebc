"""Amounts written for people: ``5G`` multiply-accumulates, ``30M`` parameters."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Context

_SCALES = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}
_QUANTITY = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)\s*([KMG]?)")


def parse_quantity(text: str) -> float:
    """Read a positive amount: a number, or a number with K, M or G behind it.

    Raises:
        ValueError: If it is neither, or not positive and finite.
    """
    match = _QUANTITY.fullmatch(text.strip())
    amount = float(match[1]) * _SCALES[match[2]] if match else 0.0
    if not 0 < amount < float("inf"):
        raise ValueError(
            f"Cannot read the amount {text!r}. "
            "Write a positive number, with K, M or G where it is large, e.g. '5G' or '2.5M'."
        )
    return amount


def rounded_up(amount: float) -> float:
    """Round an amount up to three digits, so that what is named as the least is enough."""
    return float(Context(prec=3, rounding=ROUND_CEILING).create_decimal(repr(amount)))
