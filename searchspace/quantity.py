"""Amounts written for people: ``5G`` multiply-accumulates, ``30M`` parameters."""

from __future__ import annotations

import math
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


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 epoch``, ``1,200 epochs``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def least_text(cost: float, *, is_measured: bool) -> str:
    """Write the least that a cost can be, so that asking for so much is enough.

    Args:
        cost: A count, which is written in full, or what was measured, in three digits.
        is_measured: Which of the two.
    """
    if not is_measured:
        return f"{math.ceil(cost):,}"
    rounded = Context(prec=3, rounding=ROUND_CEILING).create_decimal(repr(cost))
    return f"{float(rounded):g}"
